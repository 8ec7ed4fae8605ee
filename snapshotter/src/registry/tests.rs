//! What registries answer, and what is made of it.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use lamina_fusefs::blob::Digest;

use super::blob::RemoteBlob;
use super::*;

const BLOB: &[u8] = b"the bytes of a blob";

/// A server that answers each request by a function of its number and its head, and closes.
struct Server {
    address: String,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(answer: impl Fn(usize, &str) -> String + Send + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address").to_string();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&heads);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let mut client = client;
                let head = read_head(&mut client);
                let number = noted.lock().len();
                let answer = answer(number, &head);
                noted.lock().push(head);
                // Who has enough of it goes away.
                let _ = client.write_all(answer.as_bytes());
            }
        });
        Server { address, heads }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().clone()
    }

    fn blob(&self, registry: &Arc<Registry>) -> RemoteBlob {
        let reference = image::parse(&format!("{}/app:1", self.address)).expect("name");
        RemoteBlob::new(
            Arc::clone(registry),
            reference,
            Digest::of(BLOB),
            BLOB.len() as u64,
        )
    }
}

fn read_head(client: &mut TcpStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte).is_ok_and(|count| count == 1) {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).to_lowercase()
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} x\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{body}"
    )
}

/// Bytes 4 to 9 of the blob, as they should come.
fn part() -> String {
    answer("206", "content-range: bytes 4-8/19\r\n", "bytes")
}

fn registry(dir: &Path, patience: Duration) -> Arc<Registry> {
    Arc::new(Registry::new(&Options {
        hosts: dir.join("hosts"),
        docker_config: Some(dir.join("config.json")),
        patience,
        ..Options::default()
    }))
}

fn patient(dir: &Path) -> Arc<Registry> {
    registry(dir, Duration::from_secs(20))
}

#[test]
fn a_login_becomes_a_token_which_is_used_again() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::start(|_, head| {
        let host = head.lines().find_map(|line| line.strip_prefix("host: "));
        let host = host.unwrap_or_default();
        if head.starts_with("get /token?") {
            // me:secret
            let knows = head.contains("authorization: basic bwu6c2vjcmv0");
            let right = head.contains("scope=repository%3aapp%3apull");
            return if knows && right {
                answer("200", "", r#"{"token":"T0ken"}"#)
            } else {
                answer("401", "", "")
            };
        }
        if head.contains("authorization: bearer t0ken") {
            return part();
        }
        let challenge =
            format!("www-authenticate: Bearer realm=\"http://{host}/token\",service=\"s\"\r\n");
        answer("401", &challenge, "")
    });
    let registry = patient(dir.path());
    let denied = server.blob(&registry).part(4..9).expect_err("no login");
    assert!(
        matches!(denied, RegistryError::Denied { status: 401, .. }),
        "{denied}"
    );
    let config = format!(
        r#"{{"auths":{{"{}":{{"auth":"bWU6c2VjcmV0"}}}}}}"#,
        server.address
    );
    fs::write(dir.path().join("config.json"), config).expect("write");
    let blob = server.blob(&registry);
    assert_eq!(blob.part(4..9).expect("part"), b"bytes");
    let before = server.heads().len();
    assert_eq!(blob.part(4..9).expect("part"), b"bytes");
    assert_eq!(server.heads().len(), before + 1, "the token is known");
    for head in server.heads() {
        assert!(head.contains("user-agent: lamina/"), "{head}");
    }
}

#[test]
fn what_may_pass_is_asked_again_and_nothing_else() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::start(|number, _| match number {
        0 => answer("503", "retry-after: 0\r\n", ""),
        1 => "HTTP/1.1 206 x\r\ncontent-range: bytes 4-8/19\r\ncontent-length: 5\r\n\r\nby"
            .to_owned(),
        2 => String::new(),
        3 => answer("500", "", ""),
        _ => part(),
    });
    let registry = patient(dir.path());
    assert_eq!(server.blob(&registry).part(4..9).expect("part"), b"bytes");
    assert_eq!(server.heads().len(), 5);
    for (status, is_named) in [
        (
            "403",
            (|error| matches!(error, RegistryError::Denied { .. })) as fn(&RegistryError) -> bool,
        ),
        ("404", |error| {
            matches!(error, RegistryError::NotFound { .. })
        }),
        ("416", |error| {
            matches!(error, RegistryError::Status { status: 416, .. })
        }),
        ("200", |error| {
            matches!(error, RegistryError::NoRange { .. })
        }),
    ] {
        let server = Server::start(move |_, _| answer(status, "", "all"));
        let error = server.blob(&registry).part(4..9).expect_err(status);
        assert!(is_named(&error), "{status}: {error}");
        assert_eq!(server.heads().len(), 1, "{status} is final");
    }
}

#[test]
fn patience_ends() {
    let dir = tempfile::tempdir().expect("tempdir");
    let registry = registry(dir.path(), Duration::from_millis(500));
    let server = Server::start(|_, _| answer("429", "", ""));
    let error = server.blob(&registry).part(4..9).expect_err("busy");
    assert!(
        matches!(error, RegistryError::Busy { status: 429, .. }),
        "{error}"
    );
    assert!(server.heads().len() > 1);
    // One that asks for more than there is patience is not asked again.
    let server = Server::start(|_, _| answer("429", "retry-after: 3600\r\n", ""));
    server.blob(&registry).part(4..9).expect_err("busy");
    assert_eq!(server.heads().len(), 1);
}

#[test]
fn an_answer_with_other_bytes_than_those_asked_for_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let registry = patient(dir.path());
    for (headers, body) in [
        ("content-range: bytes 4-8/20\r\n", "bytes"),
        ("content-range: bytes 5-9/19\r\n", "bytes"),
        ("content-range: bytes 4-8/19\r\n", "byte"),
        ("content-range: bytes 4-8/19\r\n", "bytes!"),
        ("", "bytes"),
    ] {
        let server = Server::start(move |_, _| answer("206", headers, body));
        let error = server.blob(&registry).part(4..9).expect_err(body);
        assert!(
            matches!(error, RegistryError::Answer { .. }),
            "{headers}{body}: {error}"
        );
    }
}

#[test]
fn a_mirror_is_asked_first_and_left_alone_when_it_fails() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mirror = Server::start(|number, _| match number {
        0 => part(),
        _ => answer("500", "", ""),
    });
    let own = Server::start(|_, _| part());
    let hosts = dir.path().join("hosts").join(&own.address);
    fs::create_dir_all(&hosts).expect("mkdir");
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
        own.address, mirror.address
    );
    fs::write(hosts.join("hosts.toml"), text).expect("write");
    let registry = patient(dir.path());
    let blob = own.blob(&registry);
    for _ in 0..3 {
        assert_eq!(blob.part(4..9).expect("part"), b"bytes");
    }
    let heads = mirror.heads();
    assert_eq!(heads.len(), 2, "once it was good, once it failed");
    assert!(
        heads[0].contains(&format!("?ns={}", own.address)),
        "{}",
        heads[0]
    );
    assert_eq!(own.heads().len(), 2);
}

#[test]
fn a_login_does_not_follow_a_redirection() {
    let dir = tempfile::tempdir().expect("tempdir");
    let store = Server::start(|_, _| part());
    let location = format!("location: http://{}/signed\r\n", store.address);
    let server = Server::start(move |_, head| {
        if head.contains("authorization: basic") {
            answer("307", &location, "")
        } else {
            answer("401", "www-authenticate: Basic realm=\"r\"\r\n", "")
        }
    });
    let config = format!(
        r#"{{"auths":{{"{}":{{"auth":"bWU6c2VjcmV0"}}}}}}"#,
        server.address
    );
    fs::write(dir.path().join("config.json"), config).expect("write");
    let registry = patient(dir.path());
    assert_eq!(server.blob(&registry).part(4..9).expect("part"), b"bytes");
    let heads = store.heads();
    assert_eq!(heads.len(), 1);
    assert!(!heads[0].contains("authorization"), "{}", heads[0]);
    assert!(heads[0].contains("range: bytes=4-8"), "{}", heads[0]);
}

#[test]
fn a_manifest_is_no_larger_than_allowed() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::start(|_, _| answer("200", "", &" ".repeat(101)));
    let registry = Registry::new(&Options {
        hosts: dir.path().join("hosts"),
        docker_config: Some(dir.path().join("config.json")),
        manifest_bytes: 100,
        ..Options::default()
    });
    let image = registry.image(&format!("{}/app:1", server.address));
    let error = image.expect_err("too large").to_string();
    assert!(
        error.contains("more than 100 bytes (see lazy.limits.manifest_mib)"),
        "{error}"
    );
    assert_eq!(server.heads().len(), 1, "and it is not asked again");
}

#[test]
fn a_blob_comes_whole_where_no_parts_are_handed_out() {
    let dir = tempfile::tempdir().expect("dir");
    let body = std::str::from_utf8(BLOB).expect("text");
    let server = Server::start(move |_, _| answer("200", "", body));
    let blob = server.blob(&registry(dir.path(), Duration::from_secs(5)));
    assert!(matches!(
        blob.part(0..1),
        Err(RegistryError::NoRange { .. })
    ));
    let mut read = Vec::new();
    let mut whole = blob.whole().expect("whole");
    whole.read_to_end(&mut read).expect("read");
    assert_eq!(read, BLOB);
    assert!(!server.heads()[1].contains("range:"));
}

#[test]
fn a_registry_that_asks_for_an_endless_wait_is_not_waited_for() {
    let mut asked = 0;
    let answer: Result<(), _> = Registry::patiently(Duration::from_mins(1), |_| {
        asked += 1;
        Err(RegistryError::Busy {
            url: "http://r.example".to_owned(),
            status: 429,
            retry_after: Some(Duration::MAX),
        })
    });
    assert!(matches!(answer, Err(RegistryError::Busy { .. })));
    assert_eq!(asked, 1);
}
