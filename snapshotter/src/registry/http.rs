//! One request.

use std::collections::HashMap;
use std::fs::File;
use std::io::Seek as _;
use std::ops::Range;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use ureq::http::{HeaderMap, Request, Response};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, BodyReader};

use super::hosts::{Endpoint, Tls, shown};
use super::{Ask, RegistryError};

/// How long it may take until a connection stands.
const CONNECT: Duration = Duration::from_secs(5);
/// Nobody is asked to wait so long.
const FAR_AWAY: Duration = Duration::from_hours(24);
/// How long nothing may come.
const SILENCE: Duration = Duration::from_secs(15);
/// Connections to one host that are kept for the next request.
const IDLE: usize = 16;
/// How often a registry may send somewhere else.
const REDIRECTS: u32 = 5;

/// The most bytes that are read of why something is refused.
const REASON: u64 = 4 << 10;

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) bytes: Vec<u8>,
    /// Which bytes of a blob they are, and how many that has.
    pub(crate) range: Option<(Range<u64>, u64)>,
    pub(crate) url: String,
    /// The endpoint that has answered.
    pub(crate) base: String,
    /// Where in the repository the answer goes on (RFC 8288, `rel="next"`), if that is at this endpoint.
    pub(crate) next: Option<String>,
}

/// Clients, one for each way to speak TLS.
#[derive(Debug, Default)]
pub(crate) struct Agents(Mutex<HashMap<Tls, Agent>>);

impl Agents {
    pub(crate) fn of(&self, endpoint: &Endpoint) -> Result<Agent, RegistryError> {
        let mut agents = self.0.lock();
        if let Some(agent) = agents.get(&endpoint.tls) {
            return Ok(agent.clone());
        }
        let agent = agent(&endpoint.tls)?;
        agents.insert(endpoint.tls.clone(), agent.clone());
        Ok(agent)
    }
}

fn agent(tls: &Tls) -> Result<Agent, RegistryError> {
    // What the host trusts. A host that trusts nobody can still pull without TLS.
    let mut roots: Vec<Certificate<'static>> = rustls_native_certs::load_native_certs()
        .certs
        .iter()
        .map(|cert| Certificate::from_der(cert).to_owned())
        .collect();
    for path in &tls.ca {
        let failed = |reason: String| RegistryError::Config {
            path: path.clone(),
            reason,
        };
        let pem = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
        for item in ureq::tls::parse_pem(&pem) {
            if let ureq::tls::PemItem::Certificate(cert) =
                item.map_err(|error| failed(error.to_string()))?
            {
                roots.push(cert);
            }
        }
    }
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&roots))
        .disable_verification(tls.skip_verify)
        .build();
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .user_agent(concat!("lamina/", env!("CARGO_PKG_VERSION")))
        // Bytes are wanted as they are stored.
        .accept_encoding("identity")
        .max_redirects(REDIRECTS)
        .max_idle_connections_per_host(IDLE)
        .timeout_connect(Some(CONNECT))
        .timeout_per_read(Some(SILENCE))
        .tls_config(tls);
    Ok(config.build().new_agent())
}

/// A sort of request that reads something.
pub(super) type Get<T> =
    fn(&Agent, &Endpoint, &Ask<'_>, Option<&str>, Instant) -> Result<T, RegistryError>;

/// Asks an endpoint for something.
pub(super) fn get(
    agent: &Agent,
    endpoint: &Endpoint,
    ask: &Ask<'_>,
    login: Option<&str>,
    deadline: Instant,
) -> Result<Answer, RegistryError> {
    let (mut response, url) = begin(agent, endpoint, ask, login, (Some(left(deadline)), None))?;
    let range = content_range(response.headers());
    let next = next_page(response.headers(), endpoint, ask);
    if ask.part.is_some() && range.is_none() {
        return Err(RegistryError::Answer {
            url,
            what: "it does not say which part of the blob it answers with".to_owned(),
        });
    }
    let body = response.body_mut().with_config().limit(ask.most);
    let bytes = body.read_to_vec().map_err(|error| match error {
        ureq::Error::BodyExceedsLimit(_) => RegistryError::TooLarge {
            url: url.clone(),
            limit: ask.most,
        },
        error => unreachable(&error, &url, endpoint, ask),
    })?;
    Ok(Answer {
        bytes,
        range,
        url,
        base: endpoint.base.clone(),
        next,
    })
}

/// Asks an endpoint for something that is read as it comes. The deadline is that of its first byte: it
/// may take as long as it likes, if it is never silent for long.
pub(super) fn open(
    agent: &Agent,
    endpoint: &Endpoint,
    ask: &Ask<'_>,
    login: Option<&str>,
    deadline: Instant,
) -> Result<BodyReader<'static>, RegistryError> {
    let (response, _) = begin(agent, endpoint, ask, login, (None, Some(left(deadline))))?;
    let body = response.into_body().into_with_config();
    Ok(body.limit(ask.most).reader())
}

/// Makes a request and reads the head of its answer, and the URL that may be shown. A redirection is
/// followed, without the login. The times are those that all of it may take, and until the head is here.
fn begin(
    agent: &Agent,
    endpoint: &Endpoint,
    ask: &Ask<'_>,
    login: Option<&str>,
    (all, head): (Option<Duration>, Option<Duration>),
) -> Result<(Response<ureq::Body>, String), RegistryError> {
    let asked = endpoint.url(ask.registry, ask.repository, &ask.path);
    let url = shown(&asked);
    let mut request = agent.get(&asked).header("Accept", ask.accept);
    if let Some(login) = login {
        request = request.header("Authorization", login);
    }
    for (name, value) in &endpoint.headers {
        request = request.header(name, value);
    }
    if let Some(range) = &ask.part {
        request = request.header(
            "Range",
            format!("bytes={}-{}", range.start, range.end.saturating_sub(1)),
        );
    }
    let request = request
        .config()
        .timeout_global(all)
        .timeout_recv_response(head)
        .build();
    let response = request
        .call()
        .map_err(|error| unreachable(&error, &url, endpoint, ask))?;
    check(&response, &url, ask.part.is_some())?;
    Ok((response, url))
}

/// A failure of the connection. What is asked for may be written with a login in it, and is shown without.
fn unreachable(
    error: &ureq::Error,
    url: &str,
    endpoint: &Endpoint,
    ask: &Ask<'_>,
) -> RegistryError {
    let asked = endpoint.url(ask.registry, ask.repository, &ask.path);
    RegistryError::Unreachable {
        url: url.to_owned(),
        reason: error.to_string().replace(&asked, url),
    }
}

/// What a request carries.
#[derive(Clone, Copy, Debug)]
pub enum Body<'b> {
    /// Bytes, or none.
    Bytes(&'b [u8]),
    /// A file, from its beginning to its end.
    File(&'b File),
}

/// A request that writes something, or looks whether it is there.
#[derive(Clone, Debug)]
pub(super) struct Write<'b> {
    pub(super) method: &'static str,
    /// Where to: of the endpoint, or where that has sent us.
    pub(super) url: String,
    pub(super) content_type: Option<&'b str>,
    pub(super) body: Body<'b>,
    /// The status that says that it is done.
    pub(super) expected: u16,
}

/// Makes a request that writes, and answers the headers of what came back.
pub(super) fn write(
    agent: &Agent,
    endpoint: &Endpoint,
    write: &Write<'_>,
    login: Option<&str>,
    deadline: Instant,
) -> Result<HeaderMap, RegistryError> {
    let unreachable = |reason: String| RegistryError::Unreachable {
        url: without_query(&write.url).to_owned(),
        reason,
    };
    let mut request = Request::builder().method(write.method).uri(&write.url);
    // Where an upload goes on may be somebody else's.
    if origin(&write.url) == origin(&endpoint.base) {
        if let Some(login) = login {
            request = request.header("Authorization", login);
        }
        for (name, value) in &endpoint.headers {
            request = request.header(name, value);
        }
    }
    if let Some(content_type) = write.content_type {
        request = request.header("Content-Type", content_type);
    }
    let called = match (write.method, write.body) {
        ("HEAD", _) => call(agent, request.body(()), deadline),
        (_, Body::Bytes(bytes)) => call(agent, request.body(bytes), deadline),
        (_, Body::File(mut file)) => {
            file.rewind()
                .map_err(|error| unreachable(error.to_string()))?;
            call(agent, request.body(file), deadline)
        }
    };
    let mut response = called.map_err(|error| unreachable(error.to_string()))?;
    let status = response.status().as_u16();
    if status == write.expected {
        return Ok(response.headers().clone());
    }
    let failed = failure(&response, without_query(&write.url));
    match failed {
        RegistryError::Status { url, status } if status < 500 => {
            let body = response.body_mut().with_config().limit(REASON);
            let reason = body.read_to_string().unwrap_or_default();
            Err(RegistryError::Answer {
                url,
                what: format!(
                    "it refuses (HTTP {status}): {}",
                    reason.trim().escape_debug()
                ),
            })
        }
        other => Err(other),
    }
}

fn call<B: ureq::AsSendBody>(
    agent: &Agent,
    request: Result<Request<B>, ureq::http::Error>,
    deadline: Instant,
) -> Result<Response<ureq::Body>, ureq::Error> {
    let request = agent.configure_request(request?);
    let request = request.timeout_global(Some(left(deadline))).build();
    agent.run(request)
}

/// Scheme and host of a URL.
pub(super) fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url
        .get(host..)
        .and_then(|rest| rest.find(['/', '?', '#']))
        .map_or(url.len(), |at| host + at);
    url.get(..end).unwrap_or(url)
}

/// What follows a question mark may be a signature, and is nobody's business.
fn without_query(url: &str) -> &str {
    url.split('?').next().unwrap_or(url)
}

/// The time that is left; never none at all.
pub(super) fn left(deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    left.max(Duration::from_millis(1))
}

fn check<B>(response: &Response<B>, url: &str, in_part: bool) -> Result<(), RegistryError> {
    match response.status().as_u16() {
        206 if in_part => Ok(()),
        200 if in_part => Err(RegistryError::NoRange {
            url: url.to_owned(),
        }),
        200 => Ok(()),
        _ => Err(failure(response, url)),
    }
}

/// What a status means that is not the one of success.
fn failure<B>(response: &Response<B>, url: &str) -> RegistryError {
    let url = url.to_owned();
    let status = response.status().as_u16();
    match status {
        401 => RegistryError::Challenged {
            url,
            challenges: texts(response.headers(), "www-authenticate"),
        },
        403 => RegistryError::Denied { url, status },
        404 => RegistryError::NotFound { url },
        429 | 503 => RegistryError::Busy {
            url,
            status,
            retry_after: texts(response.headers(), "retry-after")
                .first()
                .and_then(|text| retry_after(text)),
        },
        status => RegistryError::Status { url, status },
    }
}

fn texts(headers: &HeaderMap, name: &str) -> Vec<String> {
    let values = headers.get_all(name).iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    texts.map(str::to_owned).collect()
}

/// Where in the repository an answer goes on. A link that leads out of the repository, or to another host, is
/// none.
fn next_page(headers: &HeaderMap, endpoint: &Endpoint, ask: &Ask<'_>) -> Option<String> {
    let links = texts(headers, "link");
    let url = links.iter().find_map(|links| next_link(links))?;
    let asked = endpoint.url(ask.registry, ask.repository, &ask.path);
    let url = shown(&resolve(&asked, url));
    let beginning = format!("{}/{}/", shown(&endpoint.base), ask.repository);
    let path = url.strip_prefix(&beginning).map(str::to_owned);
    if path.is_none() {
        let url = without_query(&url);
        tracing::debug!(url, "a registry says that its answer goes on elsewhere");
    }
    path
}

/// The link to the next page, of several as they stand in a header.
fn next_link(mut links: &str) -> Option<&str> {
    loop {
        let (_, link) = links.split_once('<')?;
        let (url, rest) = link.split_once('>')?;
        let parameters = rest.split(',').next().unwrap_or_default();
        let is_next = parameters.split(';').any(|one| {
            let (name, value) = one.split_once('=').unwrap_or_default();
            let value = value.trim().trim_matches('"');
            name.trim().eq_ignore_ascii_case("rel") && value.eq_ignore_ascii_case("next")
        });
        if is_next {
            return Some(url);
        }
        links = rest;
    }
}

/// What a reference in the answer to a request for `url` means: that of a `Location` (RFC 9110, 10.2.2), or of
/// a link.
pub(super) fn resolve(url: &str, reference: &str) -> String {
    let origin = origin(url);
    if reference.contains("://") {
        reference.to_owned()
    } else if let Some(rest) = reference.strip_prefix("//") {
        let scheme = origin.split("://").next().unwrap_or("https");
        format!("{scheme}://{rest}")
    } else if reference.starts_with('/') {
        format!("{origin}{reference}")
    } else {
        let path = without_query(url);
        if reference.starts_with('?') {
            return format!("{path}{reference}");
        }
        let dir = path.rsplit_once('/').map_or(path, |(dir, _)| dir);
        format!("{dir}/{reference}")
    }
}

/// `bytes 0-99/1000` (RFC 9110, 14.4).
fn content_range(headers: &HeaderMap) -> Option<(Range<u64>, u64)> {
    let text = headers.get("content-range")?.to_str().ok()?;
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, last) = range.split_once('-')?;
    let end = last.parse::<u64>().ok()?.checked_add(1)?;
    Some((start.parse().ok()?..end, size.parse().ok()?))
}

/// Seconds, or a date (RFC 9110, 10.2.3). A date that is far away tells of a clock that is wrong, ours or
/// theirs, and not of how long to wait.
fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    let wait = date.timestamp().as_second() - jiff::Timestamp::now().as_second();
    let wait = Duration::from_secs(u64::try_from(wait).unwrap_or(0));
    (wait < FAR_AWAY).then_some(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_says_where_it_is() {
        let range = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("content-range", ureq::http::HeaderValue::from_static(text));
            content_range(&headers)
        };
        assert_eq!(range("bytes 5-9/100"), Some((5..10, 100)));
        for bad in [
            "bytes 5-9/*",
            "bytes */100",
            "items 5-9/100",
            "bytes 5-18446744073709551615/1",
            "",
        ] {
            assert_eq!(range(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_origin_of_a_url_is_its_scheme_and_host() {
        for (url, expected) in [
            ("https://r.example/v2/a?b=c", "https://r.example"),
            ("http://r.example:5000", "http://r.example:5000"),
            ("https://r.example?a=/b", "https://r.example"),
            (
                "https://r.example@evil.example/",
                "https://r.example@evil.example",
            ),
        ] {
            assert_eq!(origin(url), expected);
        }
    }

    #[test]
    fn a_reference_may_be_whole_or_a_part() {
        let url = "https://r.example/v2/app/blobs/uploads/?ns=x";
        for (location, expected) in [
            ("https://s.example/up?a=b", "https://s.example/up?a=b"),
            ("//s.example/up", "https://s.example/up"),
            (
                "/v2/app/blobs/uploads/1?_state=x",
                "https://r.example/v2/app/blobs/uploads/1?_state=x",
            ),
            ("1", "https://r.example/v2/app/blobs/uploads/1"),
            ("?a", "https://r.example/v2/app/blobs/uploads/?a"),
        ] {
            assert_eq!(resolve(url, location), expected);
        }
    }

    #[test]
    fn the_next_page_is_one_of_several_links() {
        for (links, expected) in [
            (r#"</v2/a?last=1>; rel="next""#, Some("/v2/a?last=1")),
            ("<a,b;c>;type=x; REL=Next", Some("a,b;c")),
            (r#"<a>; rel="prev", <b>; rel="next""#, Some("b")),
            (r#"<a>; rel="prev""#, None),
            ("a; rel=next", None),
            ("<a; rel=next", None),
            ("", None),
        ] {
            assert_eq!(next_link(links), expected, "{links}");
        }
    }

    #[test]
    fn a_registry_asks_to_wait_in_seconds_or_until_a_date() {
        assert_eq!(retry_after("7"), Some(Duration::from_secs(7)));
        assert_eq!(
            retry_after("Wed, 21 Oct 2015 07:28:00 GMT"),
            Some(Duration::ZERO)
        );
        assert_eq!(retry_after("soon"), None);
        // Our clock is a century behind, or theirs ahead.
        assert_eq!(retry_after("Thu, 21 Oct 2125 07:28:00 GMT"), None);
    }
}
