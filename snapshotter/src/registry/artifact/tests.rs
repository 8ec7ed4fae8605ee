//! A registry in memory, and what is put into it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::registry::{Options, image};

const TYPE: &str = "application/vnd.example.one+json";

/// What a registry is like.
#[derive(Clone, Copy, Default)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "habits that have nothing to do with each other"
)]
struct Kind {
    /// It knows what refers to what.
    knows_referrers: bool,
    /// It says where an upload goes on without its own name.
    is_relative: bool,
    /// Writing takes a token.
    wants_token: bool,
    /// The first attempt at each upload fails.
    fails_once: bool,
    /// So many referrers are in each page of them; 0: all in one.
    per_page: usize,
    /// Where a page says that it goes on, if not where it does.
    next: Option<&'static str>,
    /// Somebody else writes each tag right after it was written, so often.
    rivals: usize,
}

#[derive(Default)]
struct State {
    blobs: HashMap<String, Vec<u8>>,
    manifests: HashMap<String, Vec<u8>>,
    rivals: usize,
    requests: Vec<String>,
}

struct Fake {
    address: String,
    state: Arc<Mutex<State>>,
    dir: tempfile::TempDir,
    registry: Registry,
}

impl Fake {
    fn start(kind: Kind) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address").to_string();
        let state = Arc::new(Mutex::new(State {
            rivals: kind.rivals,
            ..State::default()
        }));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let _ = serve(client, kind, &mut shared.lock());
            }
        });
        let dir = tempfile::tempdir().expect("tempdir");
        let registry = Registry::new(&Options {
            hosts: dir.path().join("hosts"),
            docker_config: Some(dir.path().join("config.json")),
            patience: Duration::from_secs(20),
            ..Options::default()
        });
        Fake {
            address,
            state,
            dir,
            registry,
        }
    }

    fn reference(&self) -> Reference {
        image::parse(&format!("{}/app:1", self.address)).expect("name")
    }

    /// The descriptor of an image that is there.
    fn image(&self) -> Descriptor {
        let bytes = b"a manifest";
        let digest = Digest::of(bytes);
        let mut state = self.state.lock();
        state.manifests.insert(digest.to_string(), bytes.to_vec());
        descriptor(MediaType::ImageManifest, bytes.len() as u64, digest).expect("descriptor")
    }

    fn requests(&self, beginning: &str) -> usize {
        let state = self.state.lock();
        let all = state.requests.iter();
        all.filter(|request| request.starts_with(beginning)).count()
    }
}

fn serve(client: TcpStream, kind: Kind, state: &mut State) -> std::io::Result<()> {
    let mut client = BufReader::new(client);
    let (mut request, mut length, mut head) = (String::new(), 0, String::new());
    client.read_line(&mut request)?;
    loop {
        let mut line = String::new();
        client.read_line(&mut line)?;
        let line = line.trim().to_ascii_lowercase();
        if let Some(text) = line.strip_prefix("content-length: ") {
            length = text.parse().expect("length");
        }
        if line.is_empty() {
            break;
        }
        head.push_str(&line);
        head.push('\n');
    }
    let mut body = vec![0; length];
    client.read_exact(&mut body)?;
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    state.requests.push(format!("{method} {target}"));
    let host = head.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.unwrap_or_default();
    let (status, headers, answer) = if let Some(query) = target.strip_prefix("/token?") {
        let is_right = query.contains("scope=repository%3Aapp%3Apull%2Cpush");
        let token = if is_right { "writes" } else { "reads" };
        (
            200,
            String::new(),
            json!({"token": token}).to_string().into_bytes(),
        )
    } else if kind.wants_token && method != "GET" && !head.contains("authorization: bearer writes")
    {
        // As docker-registry: what it asks for is what the request takes.
        let actions = if method == "HEAD" {
            "pull"
        } else {
            "pull,push"
        };
        let challenge = format!(
            "www-authenticate: Bearer realm=\"http://{host}/token\",service=\"s\",\
             scope=\"repository:app:{actions}\"\r\n"
        );
        (401, challenge, Vec::new())
    } else {
        answer(kind, state, (method, target, host), &body)
    };
    let shown: &[u8] = if method == "HEAD" { b"" } else { &answer };
    let mut out = format!(
        "HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
        answer.len()
    )
    .into_bytes();
    out.extend_from_slice(shown);
    client.get_mut().write_all(&out)
}

fn answer(
    kind: Kind,
    state: &mut State,
    (method, target, host): (&str, &str, &str),
    body: &[u8],
) -> (u16, String, Vec<u8>) {
    let path = target.strip_prefix("/v2/app/").expect("path");
    let nothing = |status| (status, String::new(), Vec::new());
    if let Some(upload) = path.strip_prefix("blobs/uploads/") {
        if method == "POST" {
            let own = if kind.is_relative {
                String::new()
            } else {
                format!("http://{host}")
            };
            let location = format!("location: {own}/v2/app/blobs/uploads/7?_state=a%2Bb\r\n");
            return (202, location, Vec::new());
        }
        assert!(
            upload.starts_with("7?_state=a%2Bb&digest=sha256:"),
            "{upload}"
        );
        let uploads = state
            .requests
            .iter()
            .filter(|one| one.starts_with("PUT "))
            .count();
        if kind.fails_once && uploads == 1 {
            return nothing(500);
        }
        let digest = upload.split("digest=").nth(1).expect("digest").to_owned();
        if Digest::of(body).to_string() != digest {
            return (400, String::new(), b"DIGEST_INVALID".to_vec());
        }
        state.blobs.insert(digest, body.to_vec());
        return nothing(201);
    }
    if let Some(digest) = path.strip_prefix("blobs/") {
        let found = state.blobs.get(digest).cloned();
        return found.map_or(nothing(404), |bytes| (200, String::new(), bytes));
    }
    if let Some(referrers) = path.strip_prefix("referrers/") {
        let subject = referrers.split('?').next().unwrap_or_default();
        if !kind.knows_referrers {
            return (404, String::new(), b"404 page not found\n".to_vec());
        }
        let all = state.manifests.iter().filter_map(|(digest, bytes)| {
            let told: Value = serde_json::from_slice(bytes).ok()?;
            (told["subject"]["digest"] == subject).then(|| {
                json!({"mediaType": MANIFEST, "digest": digest, "size": bytes.len(),
                    "artifactType": told["artifactType"], "annotations": told["annotations"]})
            })
        });
        let mut all: Vec<Value> = all.collect();
        all.sort_by_key(|one| one["digest"].to_string());
        let last = referrers.split("last=").nth(1).unwrap_or("0");
        let last: usize = last.parse().expect("a number");
        all.drain(..last);
        let mut link = String::new();
        if (1..all.len()).contains(&kind.per_page) {
            all.truncate(kind.per_page);
            let last = last + kind.per_page;
            let own = if kind.is_relative {
                String::new()
            } else {
                format!("http://{host}")
            };
            let next = format!("{own}/v2/app/referrers/{subject}?n=1&last={last}");
            link = format!("link: <{}>; rel=\"next\"\r\n", kind.next.unwrap_or(&next));
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": all});
        return (200, link, index.to_string().into_bytes());
    }
    let name = path.strip_prefix("manifests/").expect("path").to_owned();
    if method != "PUT" {
        let found = state.manifests.get(&name).cloned();
        return found.map_or(nothing(404), |bytes| (200, String::new(), bytes));
    }
    let mut bytes = body.to_vec();
    if name.starts_with("sha256-") && state.rivals > 0 {
        state.rivals -= 1;
        bytes = other_entry().into_bytes();
    }
    let told: Value = serde_json::from_slice(&bytes).expect("JSON");
    state.manifests.insert(name, bytes);
    let subject = told["subject"]["digest"]
        .as_str()
        .filter(|_| kind.knows_referrers);
    let headers = subject.map_or(String::new(), |subject| {
        format!("OCI-Subject: {subject}\r\n")
    });
    (201, headers, Vec::new())
}

/// What somebody else has under a tag of this sort.
fn other_entry() -> String {
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [{
        "mediaType": MANIFEST, "digest": Digest::of(b"signature").to_string(), "size": 9,
        "artifactType": "application/vnd.example.signature", "annotations": {"who": "else"},
    }]})
    .to_string()
}

fn parts(text: &str) -> Vec<Part> {
    let part = |bytes: &[u8], name: &str| Part {
        media_type: "application/octet-stream".to_owned(),
        annotations: HashMap::from([("name".to_owned(), name.to_owned())]),
        bytes: bytes.to_vec(),
    };
    vec![part(text.as_bytes(), "a"), part(b"always the same", "b")]
}

#[test]
fn what_is_put_beside_an_image_is_found_there_in_every_kind_of_registry() {
    for kind in [
        Kind::default(),
        Kind {
            knows_referrers: true,
            ..Kind::default()
        },
        Kind {
            is_relative: true,
            wants_token: true,
            ..Kind::default()
        },
        Kind {
            knows_referrers: true,
            fails_once: true,
            ..Kind::default()
        },
    ] {
        let fake = Fake::start(kind);
        let (reference, image) = (fake.reference(), fake.image());
        let subject = digest_of(&image).expect("digest");
        let pull = || {
            let pulled = fake.registry.pull_artifact(&reference, subject, TYPE, 1000);
            pulled.expect("pull")
        };
        assert_eq!(pull(), None);
        for text in ["first", "second"] {
            let pushed = fake
                .registry
                .push_artifact(&reference, &image, TYPE, &parts(text));
            pushed.expect("push");
            assert_eq!(pull(), Some(parts(text)), "the newest counts");
        }
        // What is there is not sent again: three different parts, and the empty configuration.
        let again = usize::from(kind.fails_once);
        assert_eq!(fake.requests("PUT /v2/app/blobs/"), 4 + again);
        let other = fake
            .registry
            .pull_artifact(&reference, subject, "another", 1000);
        assert_eq!(other.expect("pull"), None);
        let small = fake.registry.pull_artifact(&reference, subject, TYPE, 10);
        assert!(
            matches!(small, Err(RegistryError::Answer { .. })),
            "{small:?}"
        );
        let tag = fake.requests(&format!("PUT /v2/app/manifests/{}", tag_of(subject)));
        assert_eq!(tag, if kind.knows_referrers { 0 } else { 2 });
    }
}

#[test]
fn pages_of_what_refers_to_an_image_are_read_on_the_same_host_and_not_for_ever() {
    let paged = Kind {
        knows_referrers: true,
        per_page: 2,
        ..Kind::default()
    };
    let relative = Kind {
        is_relative: true,
        ..paged
    };
    let leads = |next| Kind {
        next: Some(next),
        ..paged
    };
    for (kind, found, pages) in [
        (paged, 5, 3),
        (relative, 5, 3),
        (leads("http://192.0.2.1/v2/app/referrers/x?last=2"), 2, 1),
        (leads("/v2/other/referrers/x?last=2"), 2, 1),
        (leads("/v2/app/manifests/x?last=2"), 2, 1),
        // Always the same page.
        (leads("?last=0"), 2 * PAGES, PAGES),
    ] {
        let fake = Fake::start(kind);
        let (reference, image) = (fake.reference(), fake.image());
        for number in 0..5 {
            let part = parts(&number.to_string());
            let pushed = fake.registry.push_artifact(&reference, &image, TYPE, &part);
            pushed.expect("push");
        }
        let subject = digest_of(&image).expect("digest");
        let all = fake.registry.referrers(&reference, subject, TYPE);
        assert_eq!(all.expect("referrers").len(), found, "{:?}", kind.next);
        assert_eq!(fake.requests("GET /v2/app/referrers/"), pages);
    }
}

#[test]
fn entries_of_others_stay_and_a_tag_that_somebody_else_wrote_is_written_again() {
    let fake = Fake::start(Kind {
        rivals: 1,
        ..Kind::default()
    });
    let (reference, image) = (fake.reference(), fake.image());
    let subject = digest_of(&image).expect("digest");
    for text in ["first", "second"] {
        let pushed = fake
            .registry
            .push_artifact(&reference, &image, TYPE, &parts(text));
        pushed.expect("push");
    }
    let state = fake.state.lock();
    let index: Value = serde_json::from_slice(&state.manifests[&tag_of(subject)]).expect("JSON");
    let all = index["manifests"].as_array().expect("entries");
    assert_eq!(all.len(), 2, "{all:?}");
    let other: Value = serde_json::from_str(&other_entry()).expect("JSON");
    assert_eq!(all[0], other["manifests"][0]);
    assert_eq!(all[1]["artifactType"], TYPE);
    drop(state);
    let fake = Fake::start(Kind {
        rivals: 100,
        ..Kind::default()
    });
    let image = fake.image();
    let error = fake
        .registry
        .push_artifact(&fake.reference(), &image, TYPE, &parts("x"));
    let error = error.expect_err("a rival wins");
    assert!(error.to_string().contains("again and again"), "{error}");
}

#[test]
fn an_artifact_of_another_image_or_with_other_bytes_is_refused() {
    let fake = Fake::start(Kind::default());
    let (reference, image) = (fake.reference(), fake.image());
    let subject = digest_of(&image).expect("digest");
    let pushed = fake
        .registry
        .push_artifact(&reference, &image, TYPE, &parts("text"));
    let pushed = pushed.expect("push");
    // The tag of another image leads to the same.
    let other = Digest::of(b"another image");
    let mut state = fake.state.lock();
    let index = state.manifests[&tag_of(subject)].clone();
    state.manifests.insert(tag_of(other), index);
    drop(state);
    let error = fake
        .registry
        .artifact(&reference, other, TYPE)
        .expect_err("another");
    assert!(error.to_string().contains("that refers to"), "{error}");
    let (text, manifest) = (Digest::of(b"text").to_string(), pushed.to_string());
    fake.state.lock().blobs.insert(text, b"tex!".to_vec());
    let error = fake
        .registry
        .pull_artifact(&reference, subject, TYPE, 1000)
        .expect_err("bytes");
    assert!(error.to_string().contains("something else than"), "{error}");
    fake.state.lock().manifests.insert(manifest, b"{}".to_vec());
    let error = fake
        .registry
        .artifact(&reference, subject, TYPE)
        .expect_err("manifest");
    assert!(error.to_string().contains("something else than"), "{error}");
}

#[test]
fn a_file_is_sent_from_its_beginning_each_time() {
    let fake = Fake::start(Kind {
        fails_once: true,
        wants_token: true,
        ..Kind::default()
    });
    let mut file = tempfile::tempfile().expect("tempfile");
    let bytes = vec![7; 300_000];
    file.write_all(&bytes).expect("write");
    file.seek(std::io::SeekFrom::Start(5)).expect("seek");
    let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
    let body = Body::File(&file);
    fake.registry
        .push_blob(&fake.reference(), digest, size, body)
        .expect("push");
    assert_eq!(fake.state.lock().blobs[&digest.to_string()], bytes);
    let other = Digest::of(b"x");
    let error = fake
        .registry
        .push_blob(&fake.reference(), other, size, body);
    let error = error.expect_err("another digest").to_string();
    assert!(
        error.contains("it refuses (HTTP 400): DIGEST_INVALID"),
        "{error}"
    );
}

#[test]
fn a_host_that_may_not_be_pushed_to_is_not() {
    let (mirror, own) = (Fake::start(Kind::default()), Fake::start(Kind::default()));
    let hosts = own.dir.path().join("hosts").join(&own.address);
    fs::create_dir_all(&hosts).expect("mkdir");
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
        own.address, mirror.address
    );
    fs::write(hosts.join("hosts.toml"), text).expect("write");
    let image = own.image();
    own.registry
        .push_artifact(&own.reference(), &image, TYPE, &parts("x"))
        .expect("push");
    assert_eq!(mirror.state.lock().requests, Vec::<String>::new());
    // Found behind a mirror that knows nothing of it, too.
    let subject = digest_of(&image).expect("digest");
    let found = own
        .registry
        .pull_artifact(&own.reference(), subject, TYPE, 1000);
    assert_eq!(found.expect("pull"), Some(parts("x")));
}
