//! A listing is what the directory was when it was taken, also where its entries are looked up later.

use super::*;

/// Lists the root with every entry looked up, and does something when the first one comes.
fn list_while(union: &Union, change: impl Fn()) -> Vec<(String, Option<Entry>)> {
    let mut listed = Vec::new();
    union
        .readdirplus(NodeId::ROOT, 0, &mut |entry, found| {
            if listed.is_empty() {
                change();
            }
            listed.push((entry.name.to_str().unwrap().to_owned(), found.copied()));
            true
        })
        .unwrap();
    listed.retain(|(name, _)| name != "." && name != "..");
    listed.sort_by(|(left, _), (right, _)| left.cmp(right));
    listed
}

fn names_of(listed: &[(String, Option<Entry>)]) -> Vec<&str> {
    listed.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn a_file_that_is_renamed_meanwhile_is_listed_under_one_of_its_names() {
    let bed = Bed::new();
    bed.lower("a", "").lower("b", "image").lower("c", "");
    let union = bed.union();
    let node = walk(&union, "b").node;
    let root = NodeId::ROOT;
    let listed = list_while(&union, || {
        let (from, to) = (OsStr::new("b"), OsStr::new("z"));
        (union.rename(root, from, root, to, RenameFlags::empty())).unwrap();
    });
    assert_eq!(names_of(&listed), ["a", "b", "c"]);
    // It may not be remembered at its old name.
    let entry = listed[1].1.unwrap();
    assert_eq!((entry.node, entry.attr.cacheable), (node, false));
    assert!(union.lookup(root, OsStr::new("b")).unwrap().is_none());
    // Its reference is one like any other.
    union.forget(node, 2);
    assert_eq!(read(&union, "z"), "image");
}

#[test]
fn a_file_that_is_removed_meanwhile_has_no_node() {
    let bed = Bed::new();
    bed.lower("a", "").lower("b", "image");
    let union = bed.union();
    walk(&union, "b");
    let listed = list_while(&union, || {
        union.unlink(NodeId::ROOT, OsStr::new("b")).unwrap();
    });
    assert_eq!(names_of(&listed), ["a", "b"]);
    assert!(listed[1].1.is_none());
}

/// Names and offsets of a part: at most `len` entries after an offset.
fn part(union: &Union, offset: u64, len: usize) -> Vec<(String, u64)> {
    let mut part = Vec::new();
    let mut visit = |entry: &crate::types::DirEntry| {
        let fits = part.len() < len;
        if fits {
            part.push((entry.name.to_str().unwrap().to_owned(), entry.next_offset));
        }
        fits
    };
    union.readdir(NodeId::ROOT, offset, &mut visit).unwrap();
    part
}

#[test]
fn a_reader_whose_listing_is_lost_misses_nothing_and_sees_nothing_twice() {
    let bed = Bed::new();
    for number in 0..50 {
        bed.lower(&format!("image{number}"), "");
    }
    let union = bed.union();
    let create = |name: &str| {
        let (_, opened) = union
            .create(ROOT, NodeId::ROOT, OsStr::new(name), 0o644, OFlags::RDWR)
            .unwrap();
        union.release(opened.fh);
    };
    (0..50).for_each(|number| create(&format!("upper{number}")));
    let mut seen = part(&union, 0, 40);
    let stays: Vec<_> = part(&union, 0, 102).split_off(40);
    for (number, (name, _)) in seen.iter().skip(2).enumerate() {
        if number % 2 == 0 {
            union.unlink(NodeId::ROOT, OsStr::new(name)).unwrap();
        }
        create(&format!("new{number}"));
    }
    // Another reader takes a new listing, and comes to its end.
    let now = part(&union, 0, usize::MAX);
    assert!(part(&union, now.last().unwrap().1, 1).is_empty());
    let rest = part(&union, seen.last().unwrap().1, usize::MAX);
    assert!(stays.iter().all(|entry| rest.contains(entry)), "{rest:?}");
    seen.extend(rest);
    let mut names: Vec<_> = seen.iter().map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), seen.len(), "a name came twice: {seen:?}");
}

#[test]
fn a_reader_that_renames_what_it_reads_comes_to_an_end() {
    let bed = Bed::new();
    for number in 0..20 {
        bed.lower(&format!("file{number}"), "");
    }
    let union = bed.union();
    let (mut offset, mut read) = (0, 0);
    while let [(name, next)] = &part(&union, offset, 1)[..] {
        offset = *next;
        read += 1;
        if name.starts_with("file") {
            let to = format!("{name}+");
            let (from, to, root) = (OsStr::new(name), OsStr::new(&to), NodeId::ROOT);
            (union.rename(root, from, root, to, RenameFlags::empty())).unwrap();
        }
    }
    assert_eq!(read, 22);
}
