// Package conformance runs containerd's own suite for snapshotters against Lamina's socket, or,
// with SNAPSHOTTER=overlayfs, against containerd's built-in overlayfs, which shows that the suite
// itself passes on this machine.
package conformance

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/mount"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/overlay"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"github.com/containerd/continuity/fs/fstest"
	"google.golang.org/grpc"
)

// factory starts a fresh daemon for one test; the suite runs many of them at once.
func factory(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	if os.Getenv("SNAPSHOTTER") == "overlayfs" {
		sn, err := overlay.NewSnapshotter(root)
		return sn, func() error { return sn.Close() }, err
	}
	socket := filepath.Join(filepath.Dir(root), "s")
	daemon := exec.Command(os.Getenv("LAMINA_BIN"), "serve", "--root", filepath.Join(root, "r"), "--address", socket)
	daemon.Stdout, daemon.Stderr = os.Stderr, os.Stderr
	if err := daemon.Start(); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := grpc.DialContext(ctx, "unix://"+socket, grpc.WithInsecure(), grpc.WithBlock())
	if err != nil {
		daemon.Process.Kill()
		return nil, nil, err
	}
	sn := proxy.NewSnapshotter(api.NewSnapshotsClient(conn), "lamina")
	return sn, func() error {
		conn.Close()
		daemon.Process.Signal(syscall.SIGTERM)
		return daemon.Wait()
	}, nil
}

func TestConformance(t *testing.T) {
	testsuite.SnapshotterSuite(t, "lamina", factory)
}

// TestRename is the suite's Rename, which it skips for every snapshotter because some kernels'
// overlayfs cannot rename a directory of a lower layer. Here it has to work.
func TestRename(t *testing.T) {
	if os.Getenv("SNAPSHOTTER") == "overlayfs" {
		t.Skip("containerd's overlayfs mounts without redirect_dir")
	}
	ctx, dir := context.Background(), t.TempDir()
	root := filepath.Join(dir, "root")
	sn, stop, err := factory(ctx, root)
	check(t, err)
	defer func() { check(t, stop()) }()
	layers := []fstest.Applier{
		fstest.Apply(
			fstest.CreateDir("/dir1", 0o700),
			fstest.CreateDir("/somefiles", 0o700),
			fstest.CreateFile("/somefiles/f1", []byte("was here first!"), 0o644),
			fstest.CreateFile("/somefiles/f2", []byte("nothing interesting"), 0o644),
		),
		fstest.Apply(
			fstest.Rename("/dir1", "/dir2"),
			fstest.CreateFile("/somefiles/f1-overwrite", []byte("new content 1"), 0o644),
			fstest.Rename("/somefiles/f1-overwrite", "/somefiles/f1"),
			fstest.Rename("/somefiles/f2", "/somefiles/f3"),
		),
	}
	parent := ""
	for i, layer := range layers {
		key, at := string(rune('a'+i)), filepath.Join(dir, string(rune('a'+i)))
		check(t, os.MkdirAll(at, 0o755))
		mounts, err := sn.Prepare(ctx, key, parent)
		check(t, err)
		check(t, mount.All(mounts, at))
		check(t, layer.Apply(at))
		check(t, fstest.CheckDirectoryEqualWithApplier(at, fstest.Apply(layers[:i+1]...)))
		check(t, mount.UnmountAll(at, 0))
		parent = "layer-" + key
		check(t, sn.Commit(ctx, parent, key))
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
