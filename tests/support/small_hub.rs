//! A small hub on loopback: repositories with branches and commits, a CDN of its own, and faults on request.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "for tests, each of which uses its own part of it")]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, LOCATION, RANGE, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

/// What goes wrong with a file's content, once.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The connection breaks after so many bytes.
    CutAfter(usize),
    /// This status, and perhaps a Retry-After in seconds.
    Status(u16, Option<u64>),
    /// Other bytes, of the same length.
    Garbage,
    /// The whole file, whatever part was asked for.
    IgnoresRange,
}

/// A request for a file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// `hub` or `cdn`
    pub host: &'static str,
    pub path: String,
    pub range: Option<String>,
    pub authorized: bool,
}

#[derive(Default)]
struct Repo {
    branches: HashMap<String, String>,
    commits: HashMap<String, BTreeMap<String, Bytes>>,
    gated: bool,
    /// What goes wrong with every file's content.
    spoilt: Option<Fault>,
}

#[derive(Default)]
struct Shelf {
    repos: HashMap<String, Repo>,
    faults: HashMap<String, VecDeque<Fault>>,
    api_faults: VecDeque<Fault>,
    seen: Vec<Seen>,
    cdn: String,
}

/// The hub; it goes away with the test's runtime.
#[derive(Clone)]
pub struct SmallHub {
    pub endpoint: String,
    shelf: Arc<Mutex<Shelf>>,
}

/// Files of at least so many bytes are kept as large ones.
const LARGE: usize = 2_000;
pub const TOKEN: &str = "hf_the_token_of_the_test";

impl SmallHub {
    pub async fn open() -> Self {
        let shelf = Arc::new(Mutex::new(Shelf::default()));
        let endpoint = serve(Router::new().fallback(hub).with_state(shelf.clone())).await;
        let cdn = serve(Router::new().fallback(cdn).with_state(shelf.clone())).await;
        shelf.lock().unwrap().cdn = cdn;
        Self { endpoint, shelf }
    }

    /// Puts a commit on a branch; `repo` is `models/owner/name` or `datasets/owner/name`. Returns the commit's id.
    pub fn commit<N: Into<String>>(
        &self,
        repo: &str,
        branch: &str,
        files: impl IntoIterator<Item = (N, Vec<u8>)>,
    ) -> String {
        let files: BTreeMap<String, Bytes> =
            files.into_iter().map(|(name, bytes)| (name.into(), bytes.into())).collect();
        let id = sha1_hex(format!("{repo} {branch} {files:?}").as_bytes());
        let mut shelf = self.shelf.lock().unwrap();
        let repo = shelf.repos.entry(repo.to_owned()).or_default();
        repo.commits.insert(id.clone(), files);
        repo.branches.insert(branch.to_owned(), id.clone());
        id
    }

    /// From now on only who shows the token gets in.
    pub fn gate(&self, repo: &str) {
        self.shelf.lock().unwrap().repos.get_mut(repo).unwrap().gated = true;
    }

    /// From now on the content of every file of the repository goes wrong like this, or, with `None`, right again.
    pub fn spoil(&self, repo: &str, fault: Option<Fault>) {
        self.shelf.lock().unwrap().repos.get_mut(repo).unwrap().spoilt = fault;
    }

    /// The next requests for the file's content go wrong like this, one after the other.
    pub fn fail(&self, path: &str, faults: impl IntoIterator<Item = Fault>) {
        self.shelf.lock().unwrap().faults.entry(path.to_owned()).or_default().extend(faults);
    }

    /// The next questions about repositories go wrong like this.
    pub fn fail_questions(&self, faults: impl IntoIterator<Item = Fault>) {
        self.shelf.lock().unwrap().api_faults.extend(faults);
    }

    /// Requests for the content of this file so far.
    pub fn seen(&self, path: &str) -> Vec<Seen> {
        self.shelf.lock().unwrap().seen.iter().filter(|seen| seen.path == path).cloned().collect()
    }
}

async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha1_hex(bytes: &[u8]) -> String {
    hex(&Sha1::digest(bytes))
}

fn git_sha1(bytes: &[u8]) -> String {
    sha1_hex(&[format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat())
}

fn refused(status: u16, code: &'static str) -> Response {
    (StatusCode::from_u16(status).unwrap(), [("x-error-code", code)], json!({"error": code}).to_string())
        .into_response()
}

fn sent_away(status: u16, after: Option<u64>) -> Response {
    let mut response = StatusCode::from_u16(status).unwrap().into_response();
    if let Some(after) = after {
        response.headers_mut().insert(RETRY_AFTER, after.into());
    }
    response
}

async fn hub(State(shelf): State<Arc<Mutex<Shelf>>>, request: Request) -> Response {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let parts: Vec<&str> = path.split('/').collect();
    let authorized = request.headers().get(AUTHORIZATION).is_some_and(|token| token == &format!("Bearer {TOKEN}"));
    let mut shelf = shelf.lock().unwrap();
    match parts.as_slice() {
        ["api", kind, owner, name, verb, revision, folder @ ..] => {
            if let Some(Fault::Status(status, after)) = shelf.api_faults.pop_front() {
                return sent_away(status, after);
            }
            let Some(repo) = shelf.repos.get(&format!("{kind}/{owner}/{name}")) else {
                return refused(401, "RepoNotFound");
            };
            let revision = revision.replace("%2F", "/");
            let commit = repo.branches.get(&revision).unwrap_or(&revision);
            let Some(files) = repo.commits.get(commit) else { return refused(404, "RevisionNotFound") };
            match *verb {
                "revision" => axum::Json(json!({"id": format!("{owner}/{name}"), "sha": commit})).into_response(),
                "tree" => axum::Json(tree(files, &folder.join("/"))).into_response(),
                _ => StatusCode::NOT_FOUND.into_response(),
            }
        }
        ["datasets", owner, name, "resolve", commit, file @ ..] => resolve(
            &mut shelf,
            &format!("datasets/{owner}/{name}"),
            commit,
            &file.join("/"),
            request.headers(),
            authorized,
        ),
        [owner, name, "resolve", commit, file @ ..] => resolve(
            &mut shelf,
            &format!("models/{owner}/{name}"),
            commit,
            &file.join("/"),
            request.headers(),
            authorized,
        ),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// As the real hub lists them: the digest of a large file is called `oid`.
fn tree(files: &BTreeMap<String, Bytes>, folder: &str) -> serde_json::Value {
    let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    files
        .iter()
        .filter(|(path, _)| path.strip_prefix(&prefix).is_some_and(|rest| !rest.contains('/')))
        .map(|(path, bytes)| {
            let mut entry = json!({"type": "file", "oid": git_sha1(bytes), "size": bytes.len(), "path": path});
            if bytes.len() >= LARGE {
                entry["lfs"] = json!({"oid": hex(&Sha256::digest(bytes)), "size": bytes.len(), "pointerSize": 130});
            }
            entry
        })
        .collect()
}

fn resolve(shelf: &mut Shelf, repo: &str, commit: &str, file: &str, headers: &HeaderMap, authorized: bool) -> Response {
    let Some(found) = shelf.repos.get(repo) else { return refused(401, "RepoNotFound") };
    if found.gated && !authorized {
        return refused(if headers.contains_key(AUTHORIZATION) { 403 } else { 401 }, "GatedRepo");
    }
    let spoilt = found.spoilt.clone();
    if let Some(Fault::Status(status, after)) = spoilt {
        return sent_away(status, after);
    }
    let Some(content) = found.commits.get(commit).and_then(|files| files.get(file)).cloned() else {
        return refused(404, "EntryNotFound");
    };
    shelf.saw("hub", file, headers);
    if content.len() < LARGE {
        let tag = format!("\"{}\"", git_sha1(&content));
        return deliver(spoilt.or_else(|| shelf.fault(file)), content, headers, &[(ETAG.as_str(), tag)]);
    }
    let to = format!("{}/{repo}/{commit}/{file}?signature=secret", shelf.cdn);
    let headers = [
        (LOCATION.as_str(), to),
        ("x-linked-etag", format!("\"{}\"", hex(&Sha256::digest(&content)))),
        ("x-linked-size", content.len().to_string()),
        ("x-repo-commit", commit.to_owned()),
    ];
    (StatusCode::FOUND, headers, "").into_response()
}

async fn cdn(State(shelf): State<Arc<Mutex<Shelf>>>, request: Request) -> Response {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let parts: Vec<&str> = path.splitn(5, '/').collect();
    let mut shelf = shelf.lock().unwrap();
    let [kind, owner, name, commit, file] = parts.as_slice() else { return StatusCode::NOT_FOUND.into_response() };
    let repo = &shelf.repos[&format!("{kind}/{owner}/{name}")];
    let (content, spoilt) = (repo.commits[*commit][*file].clone(), repo.spoilt.clone());
    shelf.saw("cdn", file, request.headers());
    deliver(spoilt.or_else(|| shelf.fault(file)), content, request.headers(), &[])
}

impl Shelf {
    fn saw(&mut self, host: &'static str, path: &str, headers: &HeaderMap) {
        let range = headers.get(RANGE).map(|range| range.to_str().unwrap().to_owned());
        let authorized = headers.contains_key(AUTHORIZATION);
        self.seen.push(Seen { host, path: path.to_owned(), range, authorized });
    }

    fn fault(&mut self, file: &str) -> Option<Fault> {
        self.faults.get_mut(file)?.pop_front()
    }
}

fn deliver(fault: Option<Fault>, content: Bytes, headers: &HeaderMap, extra: &[(&str, String)]) -> Response {
    let begin = match (&fault, headers.get(RANGE)) {
        (Some(Fault::IgnoresRange), _) | (_, None) => 0,
        (_, Some(range)) => {
            let range = range.to_str().unwrap().strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap();
            range.parse::<usize>().unwrap()
        }
    };
    let total = content.len();
    let mut rest = content.slice(begin..);
    let mut response = Response::builder().header(CONTENT_LENGTH, rest.len());
    if begin > 0 {
        response = response.status(206).header(CONTENT_RANGE, format!("bytes {begin}-{}/{total}", total - 1));
    }
    for (name, value) in extra {
        response = response.header(*name, value);
    }
    let body = match fault {
        Some(Fault::Status(status, after)) => return sent_away(status, after),
        Some(Fault::CutAfter(bytes)) => {
            let sent = rest.split_to(bytes.min(rest.len()));
            let parts = stream::iter([Ok(sent), Err(std::io::Error::other("cut"))]);
            // The part must be on its way before the connection breaks, or nothing of it would arrive.
            Body::from_stream(futures::StreamExt::then(parts, |part| async {
                tokio::task::yield_now().await;
                part
            }))
        }
        Some(Fault::Garbage) => Body::from(vec![b'#'; rest.len()]),
        Some(Fault::IgnoresRange) | None => Body::from_stream(stream::iter([Ok::<_, Infallible>(rest)])),
    };
    response.body(body).unwrap()
}
