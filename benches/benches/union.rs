//! The union core by itself, without FUSE: what a lookup, a merge, an index and a copy-up cost.
//!
//! `cargo bench -p lamina-benches` measures; `cargo test` runs each once, to see that it can.
//! Everything is on the file system of the target directory, and in its caches.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use lamina_benches::image::{Image as Wanted, Scale, Source, layers};
use lamina_fusefs::image::{Image, LayerPlace, index_in};
use lamina_fusefs::layer::{DirLayer, Layer};
use lamina_fusefs::types::{Caller, FileKind, NodeId, SetAttr};
use lamina_fusefs::union::Union;
use lamina_fusefs::upper::Upper;
use rustix::fs::OFlags;
use tempfile::TempDir;

/// About 1,200 files.
const SCALE: f64 = 0.01;

/// Of how many layers images are.
const STACKS: [usize; 2] = [2, 20];

/// Copied up in one go.
const FILES: usize = 100;

const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0,
};

/// The image as a value, and its layers on disk, the topmost first.
struct Ground {
    dir: TempDir,
    wanted: Wanted,
    layers: Vec<PathBuf>,
}

impl Ground {
    fn new(count: usize) -> Ground {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("room");
        let scale = Scale::new(SCALE).expect("a scale");
        let wanted = Wanted::userland(Source::Made, dir.path(), scale).expect("an image");
        let layers = layers::write(&wanted, &dir.path().join("layers"), count, || {});
        Ground {
            layers: layers.expect("layers"),
            wanted,
            dir,
        }
    }

    /// The layers, merged when somebody looks.
    fn merged(&self) -> Arc<Image> {
        let open = |path| Arc::new(DirLayer::open(path).expect("layer")) as Arc<dyn Layer>;
        let layers = self.layers.iter().map(|path| open(path));
        Image::new(layers.collect()).expect("image")
    }

    fn index(&self) -> PathBuf {
        index_in(self.dir.path(), &self.layers)
    }

    /// The layers by their index, which is made if it is not there.
    fn indexed(&self) -> Arc<Image> {
        let place = |dir: &PathBuf| LayerPlace::Dir {
            dir: dir.clone(),
            index: None,
        };
        let places: Vec<_> = self.layers.iter().map(place).collect();
        let image = Image::open_indexed(&places, &self.index()).expect("image");
        assert!(image.is_indexed());
        image
    }

    /// A union with an empty upper.
    fn writable(&self) -> Union {
        let [upper, work] = ["upper", "work"].map(|name| self.dir.path().join(name));
        for dir in [&upper, &work] {
            // There is none the first time.
            let _ = fs::remove_dir_all(dir);
            fs::create_dir(dir).expect("directory");
        }
        let upper = Upper::open(&upper, &work).expect("upper");
        Union::new(self.indexed(), Some(upper)).expect("union")
    }

    /// Looks up some files, from the root each.
    fn files(&self, union: &Union) -> Vec<NodeId> {
        let files = self.wanted.files().take(FILES);
        files.map(|(node, ..)| look_up(union, &node.path)).collect()
    }
}

fn read_only(image: Arc<Image>) -> Union {
    Union::new(image, None).expect("union")
}

fn look_up(union: &Union, path: &Path) -> NodeId {
    path.iter().fold(NodeId::ROOT, |dir, name| {
        let found = union.lookup(dir, name).expect("lookup");
        found.expect("a name of the image").node
    })
}

/// Every name, from an image that was just opened.
fn lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lookup of all names");
    for count in STACKS {
        let ground = Ground::new(count);
        let all = |union: Union| {
            for node in ground.wanted.nodes() {
                look_up(&union, &node.path);
            }
            union
        };
        group.bench_function(BenchmarkId::new("indexed", count), |bencher| {
            let fresh = || read_only(ground.indexed());
            bencher.iter_batched(fresh, all, BatchSize::PerIteration);
        });
        group.bench_function(BenchmarkId::new("merged", count), |bencher| {
            let fresh = || read_only(ground.merged());
            bencher.iter_batched(fresh, all, BatchSize::PerIteration);
        });
    }
}

/// Lists every directory of layers without an index: each is merged when it is listed.
fn merge(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("merge of all directories");
    for count in STACKS {
        let ground = Ground::new(count);
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            let fresh = || read_only(ground.merged());
            let walk = |union| {
                assert_eq!(list(&union, NodeId::ROOT), ground.wanted.nodes().len());
                union
            };
            bencher.iter_batched(fresh, walk, BatchSize::PerIteration);
        });
    }
}

/// How many names there are below a directory.
fn list(union: &Union, dir: NodeId) -> usize {
    let (mut count, mut dirs) = (0, Vec::new());
    let listed = union.readdirplus(dir, 0, &mut |_, found| {
        if let Some(found) = found {
            count += 1;
            dirs.extend((found.attr.kind == FileKind::Directory).then_some(found.node));
        }
        true
    });
    listed.expect("readdirplus");
    count + dirs.iter().map(|dir| list(union, *dir)).sum::<usize>()
}

/// From layers without an index to an opened image with one.
fn index(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("index");
    for count in STACKS {
        let ground = Ground::new(count);
        group.bench_function(BenchmarkId::new("build", count), |bencher| {
            // There is none the first time.
            let without = || drop(fs::remove_file(ground.index()));
            bencher.iter_batched(without, |()| ground.indexed(), BatchSize::PerIteration);
        });
        ground.indexed();
        group.bench_function(BenchmarkId::new("open", count), |bencher| {
            bencher.iter(|| ground.indexed());
        });
    }
}

/// What `chown` and the first `open` for writing cost an image file.
fn copy_up(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group(format!("copy-up of {FILES} files"));
    let ground = Ground::new(2);
    let fresh = || {
        let union = ground.writable();
        let files = ground.files(&union);
        (union, files)
    };
    group.bench_function("chown", |bencher| {
        let chown = |(union, files): (Union, Vec<NodeId>)| {
            let change = SetAttr {
                uid: Some(1),
                ..SetAttr::default()
            };
            for node in files {
                union.setattr(ROOT, node, None, &change).expect("setattr");
            }
            union
        };
        bencher.iter_batched(fresh, chown, BatchSize::PerIteration);
    });
    group.bench_function("open", |bencher| {
        let open = |(union, files): (Union, Vec<NodeId>)| {
            for node in files {
                let opened = union.open(ROOT, node, OFlags::WRONLY).expect("open");
                union.release(opened.fh);
            }
            union
        };
        bencher.iter_batched(fresh, open, BatchSize::PerIteration);
    });
}

criterion_group! {
    name = core;
    config = Criterion::default().sample_size(20);
    targets = lookup, merge, index, copy_up
}
criterion_main!(core);
