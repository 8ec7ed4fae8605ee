//! Keeps `docs/semantics.md` true: each statement in it names the tests that hold it up.
//!
//! A statement is a bullet. It ends with a comment that readers of the page do not see, either
//! `<!-- module::test, module::test -->` or `<!-- no test: the reason -->`. Which tests there are is
//! read from the sources: this test runs nothing and mounts nothing. It fails for a statement that
//! names no test, for a test that is not there (any more), for a heading with nothing below it,
//! and for a difference of the differential test that the document does not tell.

// In a test a failed step is the end of it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// The document, from the top of the repository.
const DOCUMENT: &str = "docs/semantics.md";
/// The table of what may differ from overlayfs.
const DIFFERENCES: &str = "fusefs/tests/differential/differences.rs";
/// Where tests are.
const SOURCES: [&str; 4] = [
    "fusefs/src",
    "fusefs/tests",
    "snapshotter/src",
    "snapshotter/tests",
];
/// How a statement says that nothing holds it up.
const NO_TEST: &str = "no test:";

#[test]
fn the_document_is_held_up_by_tests() {
    let document = fs::read_to_string(top().join(DOCUMENT)).unwrap();
    let mut wrong = walk(&document, &Tests::of_the_sources());
    let differences = fs::read_to_string(top().join(DIFFERENCES)).unwrap();
    wrong.extend(untold(&document, &known_differences(&differences)));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The top of the repository.
fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A bullet of the document.
struct Statement {
    /// The line on which it begins, from 1.
    line: usize,
    text: String,
}

/// What is wrong with a document, each with its line.
fn walk(document: &str, tests: &Tests) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut section: Option<(usize, &str, bool)> = None;
    let mut statement: Option<Statement> = None;
    for (line, text) in (1..).zip(document.lines()) {
        if text.trim_start().starts_with("- ") {
            wrong.extend(statement.take().and_then(|old| judge(&old, tests)));
            if let Some((_, _, has_statements)) = &mut section {
                *has_statements = true;
            }
            let text = text.trim().to_owned();
            statement = Some(Statement { line, text });
        } else if let Some(current) = &mut statement
            && text.starts_with(' ')
        {
            current.text.push(' ');
            current.text.push_str(text.trim());
        } else {
            wrong.extend(statement.take().and_then(|old| judge(&old, tests)));
            if let Some(heading) = text.strip_prefix("## ") {
                wrong.extend(section.replace((line, heading, false)).and_then(empty));
            }
        }
    }
    wrong.extend(statement.and_then(|last| judge(&last, tests)));
    wrong.extend(section.and_then(empty));
    wrong
}

/// A complaint about a section in which nothing is said.
fn empty((line, heading, has_statements): (usize, &str, bool)) -> Option<String> {
    (!has_statements).then(|| at(line, &format!("\"{heading}\" has no statement")))
}

/// A complaint about a statement that nothing holds up.
fn judge(statement: &Statement, tests: &Tests) -> Option<String> {
    let complain = |what: &str| Some(at(statement.line, what));
    let Some((_, comment)) = statement.text.split_once("<!--") else {
        return complain("the statement names no test (<!-- module::test -->)");
    };
    let Some(comment) = comment.strip_suffix("-->") else {
        return complain("the comment has to be one, and the end of the statement");
    };
    let comment = comment.trim();
    if let Some(reason) = comment.strip_prefix(NO_TEST) {
        return match reason.trim() {
            "" => complain("why is there no test?"),
            _ => None,
        };
    }
    let missing: Vec<_> = comment
        .split(',')
        .map(str::trim)
        .filter(|name| !tests.has(name))
        .collect();
    if missing.is_empty() {
        return None;
    }
    complain(&format!("there is no test {}", missing.join(", ")))
}

fn at(line: usize, what: &str) -> String {
    format!("{DOCUMENT}:{line}: {what}")
}

/// Complaints about differences that a document does not tell.
fn untold(document: &str, differences: &[String]) -> Vec<String> {
    let document = words(document);
    differences
        .iter()
        .filter(|what| !document.contains(&words(what)))
        .map(|what| at(1, &format!("nothing is said of \"{what}\" ({DIFFERENCES})")))
        .collect()
}

/// A text without its line breaks.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The names of the differences, from the source of their tables.
fn known_differences(source: &str) -> Vec<String> {
    source
        .split("what: \"")
        .skip(1)
        .filter_map(|rest| rest.split_once('"'))
        .map(|(what, _)| words(&what.replace("\\\n", "")))
        .collect()
}

/// All tests, by module and name.
struct Tests(Vec<String>);

impl Tests {
    fn of_the_sources() -> Tests {
        let mut names = Vec::new();
        for sources in SOURCES {
            collect(
                &top().join(sources),
                &sources.replace('/', "::"),
                &mut names,
            );
        }
        Tests(names)
    }

    /// Whether there is a test of this name: its function, and as many of the modules around it, from
    /// the innermost, as the name has.
    fn has(&self, name: &str) -> bool {
        name.contains("::")
            && self.0.iter().any(|test| {
                test.strip_suffix(name)
                    .is_some_and(|before| before.is_empty() || before.ends_with("::"))
            })
    }
}

/// Every test at or below a directory; `module` is the directory's path, as a module.
fn collect(directory: &Path, module: &str, names: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let inner = match stem {
            "mod" | "main" => module.to_owned(),
            stem => format!("{module}::{stem}"),
        };
        if path.is_dir() {
            collect(&path, &inner, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = fs::read_to_string(&path).unwrap();
            names.extend(tests_in(&source).map(|test| format!("{inner}::{test}")));
        }
    }
}

/// The test functions of a source. What is ignored is no test.
fn tests_in(source: &str) -> impl Iterator<Item = &str> {
    let mut is_test = false;
    source.lines().filter_map(move |line| {
        let line = line.trim();
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if line.starts_with("#[ignore") {
            is_test = false;
        }
        let function = line.strip_prefix("async ").unwrap_or(line);
        let function = function.strip_prefix("fn ")?;
        let name = function.split(['(', '<']).next();
        name.filter(|_| std::mem::take(&mut is_test))
    })
}

/// A document with every fault that there can be, and what is said of each.
#[test]
fn a_bad_document_is_refused() {
    let document = "# Semantics

## Good

- Held up. <!-- data::reads -->
- By two tests,
  over lines. <!-- data::reads,
  union::data::writes -->
- By the whole name. <!-- mounted::data::reads -->
- Not to be tested. <!-- no test: the power cannot be cut -->

## Nothing is said here

Only told.

## Bad

- Names nothing.
- Names what is not there. <!-- data::reads, data::gone -->
- Names no module. <!-- reads -->
- Names half a module. <!-- ata::reads -->
- Says no reason. <!-- no test: -->
- Goes on <!-- data::reads --> after the comment.
  - Is a part, and names nothing.

## The end
";
    let tests = Tests(
        ["mounted::data::reads", "src::union::data::writes"]
            .map(str::to_owned)
            .to_vec(),
    );
    let expected = [
        ":12: \"Nothing is said here\" has no statement",
        ":18: the statement names no test (<!-- module::test -->)",
        ":19: there is no test data::gone",
        ":20: there is no test reads",
        ":21: there is no test ata::reads",
        ":22: why is there no test?",
        ":23: the comment has to be one, and the end of the statement",
        ":24: the statement names no test (<!-- module::test -->)",
        ":26: \"The end\" has no statement",
    ];
    let mut wrong = walk(document, &tests);
    wrong.sort();
    let expected = expected.map(|what| format!("{DOCUMENT}{what}"));
    assert_eq!(wrong, expected);
}

#[test]
fn a_difference_that_is_not_told_is_found() {
    let source =
        "Known { what: \"this is \\\n    told\", why: \"x\" }, Known { what: \"this is not\" }
        found.what == \"nlink\"";
    let differences = known_differences(source);
    assert_eq!(differences, ["this is told", "this is not"]);
    let wrong = untold("- This: this is\n  told.", &differences);
    assert_eq!(wrong.len(), 1);
    assert!(wrong[0].contains("\"this is not\""), "{}", wrong[0]);
}

#[test]
fn tests_are_found_in_sources() {
    let source = "
        #[test]
        fn plain() {}
        fn helper() {}
        #[tokio::test(flavor = \"multi_thread\")]
        async fn waits() {}
        #[test]
        #[ignore = \"slow\"]
        fn ignored() {}
        // #[test]
        fn commented() {}
        #[test]
        #[should_panic]
        fn panics<T>() {}";
    let found: Vec<_> = tests_in(source).collect();
    assert_eq!(found, ["plain", "waits", "panics"]);
    assert!(Tests::of_the_sources().has("semantics::tests_are_found_in_sources"));
}
