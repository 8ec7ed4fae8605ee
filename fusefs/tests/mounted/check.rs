//! An upper that real work wrote is sound, whoever served the mount. (What is wrong with unsound
//! ones is tested beside the check itself.)

use std::fs;

use lamina_fusefs::check::{Finding, Problem, check_lowest, check_upper};

use crate::layers::{image, live};
use crate::system::{Access, Layers, Mounted, System, each_system};
use crate::tools::{append, chmod, lchown, write};

/// Hard links too, and directories that change places.
fn linked_image(layers: &Layers) {
    image(layers);
    for name in ["x", "y", "z"] {
        write(layers.bottom(&format!("swap-{name}/{name}")), name);
    }
    write(layers.bottom("one"), "links");
    for name in ["two", "dir/three", "four"] {
        fs::hard_link(layers.bottom("one"), layers.bottom(name)).unwrap();
    }
}

fn live_with_links(m: &Mounted) {
    live(m);
    append(m.path("two"), "!");
    fs::rename(m.path("two"), m.path("dir/here/two")).unwrap();
    fs::hard_link(m.path("dir/here/two"), m.path("again/five")).unwrap();
    fs::remove_file(m.path("one")).unwrap();
    fs::rename(m.path("swap-x"), m.path("between")).unwrap();
    fs::rename(m.path("swap-y"), m.path("swap-x")).unwrap();
    fs::rename(m.path("between"), m.path("swap-y")).unwrap();
    fs::create_dir(m.path("fresh")).unwrap();
    fs::rename(m.path("swap-z"), m.path("fresh/z")).unwrap();
    fs::rename(m.path("meta"), m.path("fresh/meta")).unwrap();
    fs::rename(m.path("fresh/z/z"), m.path("dir/z")).unwrap();
}

/// Checks what the unmounted layers hold.
fn check(layers: &Layers) -> Vec<Finding> {
    let found = check_upper(&layers.upper(), Some(&layers.work()), layers.lowers());
    assert_eq!(check_lowest(&layers.bottom("")).unwrap(), []);
    found.unwrap()
}

#[test]
fn real_work_leaves_a_sound_upper() {
    each_system(linked_image, |m| {
        live_with_links(m);
        m.unmount();
        assert_eq!(check(&m.layers), []);
        m.mount();
        // And so does work on what was mounted again.
        append(m.path("dir/here/two"), "!");
        append(m.path("four"), "!");
        fs::remove_file(m.path("dir/three")).unwrap();
        fs::remove_dir_all(m.path("fresh")).unwrap();
        m.unmount();
        assert_eq!(check(&m.layers), []);
    });
}

#[test]
fn an_upper_above_other_layers_is_not_sound() {
    each_system(linked_image, |m| {
        live_with_links(m);
        m.unmount();
        let other = Layers::new(1);
        let found = check_upper(&m.layers.upper(), None, other.lowers()).unwrap();
        let has = |problem: &Problem| found.iter().any(|finding| finding.problem == *problem);
        assert!(has(&Problem::OriginElsewhere), "{found:?}");
        assert!(has(&Problem::WhiteoutHidesNothing), "{found:?}");
        let nowhere =
            |finding: &Finding| matches!(finding.problem, Problem::RedirectNowhere { .. });
        assert!(found.iter().any(nowhere), "{found:?}");
    });
}

#[test]
fn files_whose_data_the_kernel_left_below() {
    if !System::Overlayfs.is_wanted() {
        return;
    }
    let layers = Layers::new(2);
    linked_image(&layers);
    let options = [("redirect_dir", "on"), ("index", "on"), ("metacopy", "on")];
    layers.mount_overlay(Access::Write, &options);
    let at = |name: &str| layers.mountpoint().join(name);
    for name in ["data", "dir/a", "one"] {
        chmod(at(name), 0o600);
        lchown(at(name), 3, 4);
    }
    fs::rename(at("data"), at("dir/data")).unwrap();
    rustix::mount::unmount(layers.mountpoint(), rustix::mount::UnmountFlags::empty()).unwrap();
    assert_eq!(check(&layers), []);
}
