// Serves stargz-snapshotter's packages, as Debian's golang-github-containerd-stargz-snapshotter-dev
// has them, on a socket: what upstream's containerd-stargz-grpc does without a configuration file.
// Debian has no such program, and can't build its package `service`, which wants another release of
// Kubernetes' API; that package puts together what is put together here. scripts/bench builds this.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/contrib/snapshotservice"
	"github.com/containerd/containerd/reference"
	"github.com/containerd/containerd/remotes/docker"
	"github.com/containerd/stargz-snapshotter/fs"
	"github.com/containerd/stargz-snapshotter/fs/config"
	"github.com/containerd/stargz-snapshotter/fs/layer"
	"github.com/containerd/stargz-snapshotter/fs/source"
	"github.com/containerd/stargz-snapshotter/metadata/memory"
	"github.com/containerd/stargz-snapshotter/snapshot"
	"github.com/hashicorp/go-retryablehttp"
	"google.golang.org/grpc"
)

func main() {
	root := flag.String("root", "", "where everything is kept")
	address := flag.String("address", "", "the socket")
	flag.Parse()
	snapshots := filepath.Join(*root, "snapshotter")
	check(os.MkdirAll(snapshots, 0o700))
	registries := docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost))
	hosts := func(image reference.Spec) ([]docker.RegistryHost, error) {
		found, err := registries(image.Hostname())
		for at := range found {
			client := retryablehttp.NewClient()
			client.Logger = nil
			found[at].Client = client.StandardClient()
			found[at].Client.Timeout = 30 * time.Second
		}
		return found, err
	}
	filesystem, err := fs.NewFilesystem(filepath.Join(*root, "stargz"), config.Config{},
		fs.WithGetSources(source.FromDefaultLabels(hosts)),
		fs.WithMetadataStore(memory.NewReader),
		fs.WithOverlayOpaqueType(layer.OverlayOpaqueTrusted))
	check(err)
	snapshotter, err := snapshot.NewSnapshotter(context.Background(), snapshots, filesystem,
		snapshot.AsynchronousRemove)
	check(err)
	server := grpc.NewServer()
	api.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	socket, err := net.Listen("unix", *address)
	check(err)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals
		server.Stop()
	}()
	check(server.Serve(socket))
	check(snapshotter.Close())
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
