//! A listing is what the directory was when it was taken, also where its entries are looked up later.

use super::*;

/// Lists the root with every entry looked up, and does something when the first one comes.
fn list_while(union: &Union, change: impl Fn()) -> Vec<(String, Option<Entry>)> {
    let fh = union.opendir(NodeId::ROOT).unwrap();
    let mut listed = Vec::new();
    union
        .readdirplus(fh, 0, &mut |entry, found| {
            if listed.is_empty() {
                change();
            }
            listed.push((entry.name.to_str().unwrap().to_owned(), found.copied()));
            true
        })
        .unwrap();
    union.releasedir(fh);
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
