//! Files from the hub into the blobs: resumed where they were cut, checked before they count.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use reqwest::header::{AUTHORIZATION, CONTENT_RANGE, ETAG, HeaderMap, LOCATION, RANGE, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncWriteExt, BufWriter};

use super::listing::{refusal, unreachable_because};
use super::{Checksum, Hub, HubError, HubFile, Kind, Pinned};
use crate::blobs::{BlobError, Blobs, Stored, hex};

/// Redirects that are followed for a file.
const MOST_REDIRECTS: usize = 5;

/// Why a try came to nothing.
enum Setback {
    /// For good.
    Final(HubError),
    /// Another try may do better.
    Again { problem: String, asked: Option<Duration> },
}

impl From<HubError> for Setback {
    fn from(error: HubError) -> Self {
        Self::Final(error)
    }
}

impl From<BlobError> for Setback {
    fn from(error: BlobError) -> Self {
        Self::Final(error.into())
    }
}

fn again(problem: impl Into<String>) -> Setback {
    Setback::Again { problem: problem.into(), asked: None }
}

impl Hub {
    /// Brings a file into the blobs. What was begun before, even by a process that is no more, is continued.
    pub async fn fetch(&self, pinned: &Pinned, file: &HubFile) -> Result<Stored, HubError> {
        if self.is_offline() {
            return Err(HubError::Offline(format!("{}/{}", pinned.origin(), file.path)));
        }
        let url = self.url(pinned, &file.path)?;
        let key = hex(&Sha256::digest(url.as_str()));
        let _turn = self.inner.turns.take(&key).await;
        let partial = self.inner.blobs.partial_path(&key);
        let (mut failures, mut corrupt) = (0, false);
        loop {
            let before = length(&partial).await;
            let setback = match self.continue_download(&url, pinned, file, &partial).await {
                Ok(checksum) => match self.inner.blobs.clone().settle(&partial, &checksum).await? {
                    Ok(stored) => return Ok(stored),
                    // Once may be bad luck on the way; twice is how the file is there.
                    Err(found) if corrupt => return Err(wrong(pinned, file, &checksum, found)),
                    Err(_) => {
                        corrupt = true;
                        again("sent something else than it announced")
                    }
                },
                Err(setback) => setback,
            };
            let (problem, asked) = match setback {
                Setback::Final(error) => return Err(error),
                Setback::Again { problem, asked } => (problem, asked),
            };
            // Whoever got further has reason to go on.
            failures = if length(&partial).await > before { 1 } else { failures + 1 };
            let Some(wait) = self.inner.patience.wait(failures, asked, rand::random()) else {
                return Err(HubError::Unavailable { problem, tries: failures });
            };
            tracing::warn!(repo = pinned.repo, file = file.path, problem, failures, ?wait, "fetching again");
            tokio::time::sleep(wait).await;
        }
    }

    fn url(&self, pinned: &Pinned, path: &str) -> Result<Url, HubError> {
        let mut url = self.inner.endpoint.clone();
        let prefix = match pinned.kind {
            Kind::Model => None,
            Kind::Dataset => Some("datasets"),
        };
        url.path_segments_mut()
            .map_err(|()| HubError::Setup(format!("hub.endpoint = {} is no address of a server", self.inner.endpoint)))?
            .pop_if_empty()
            .extend(prefix)
            .extend(pinned.repo.split('/'))
            .extend(["resolve", &pinned.commit])
            .extend(path.split('/'));
        Ok(url)
    }

    /// Appends what is missing of the file; says what the whole is to be checked by.
    async fn continue_download(
        &self,
        url: &Url,
        pinned: &Pinned,
        file: &HubFile,
        partial: &Path,
    ) -> Result<Checksum, Setback> {
        let mut begun = length(partial).await;
        if begun > 0 && begun >= file.bytes {
            // All of it was there already, but only an answer carries the digest: ask for the last byte again.
            begun = file.bytes.saturating_sub(1);
            truncate(&self.inner.blobs, partial, begun).await?;
        }
        self.inner.blobs.check_room(file.bytes.saturating_sub(begun))?;
        let (response, announced) = self.get(url, pinned, file, begun).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(&response, begun) => {}
            StatusCode::OK => {
                begun = 0;
                truncate(&self.inner.blobs, partial, 0).await?;
            }
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                truncate(&self.inner.blobs, partial, 0).await?;
                return Err(again("answers with another part of the file than was asked for"));
            }
            status => return Err(self.setback(&response, status, url, pinned, file)),
        }
        self.append(response, begun, file, partial).await?;
        Ok(match (&file.checksum, announced) {
            (Checksum::Lfs(None), Some(sha256)) => Checksum::Lfs(Some(sha256)),
            (known, _) => known.clone(),
        })
    }

    /// The answer that has the content, and the sha256 that an answer on the way there announced.
    async fn get(
        &self,
        url: &Url,
        pinned: &Pinned,
        file: &HubFile,
        begun: u64,
    ) -> Result<(Response, Option<String>), Setback> {
        let mut at = url.clone();
        let mut announced = None;
        for _ in 0..=MOST_REDIRECTS {
            let mut request = self.inner.http.get(at.clone());
            if begun > 0 {
                request = request.header(RANGE, format!("bytes={begun}-"));
            }
            if let Some(token) = self.inner.token.as_ref().filter(|_| at.origin() == self.inner.endpoint.origin()) {
                request = request.header(AUTHORIZATION, token.0.clone());
            }
            let response = request.send().await.map_err(|error| again(unreachable_because(&error)))?;
            if at.origin() == self.inner.endpoint.origin() {
                announced = sha256_in(response.headers()).or(announced);
            }
            if !response.status().is_redirection() {
                return Ok((response, announced));
            }
            let target = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
            let next = target.and_then(|to| at.join(to).ok());
            at = match next {
                Some(next) if next.scheme() == "https" || next.scheme() == at.scheme() => next,
                _ => return Err(again("redirects to nowhere")),
            };
        }
        let problem = format!("redirects more than {MOST_REDIRECTS} times for `{}` of `{}`", file.path, pinned.repo);
        Err(HubError::Unavailable { problem, tries: 1 }.into())
    }

    fn setback(&self, response: &Response, status: StatusCode, url: &Url, pinned: &Pinned, file: &HubFile) -> Setback {
        // A refusal by another host than the hub is a signed address that has expired: the hub gives a fresh one.
        if response.url().origin() == url.origin() {
            let code = response.headers().get("x-error-code").and_then(|code| code.to_str().ok());
            let what = format!("file `{}` in `{}` at {}", file.path, pinned.repo, pinned.commit);
            if let Some(refused) = refusal(&pinned.repo, &what, status.as_u16(), code) {
                return Setback::Final(refused);
            }
        }
        let asked = response.headers().get(RETRY_AFTER).and_then(|after| after.to_str().ok()?.trim().parse().ok());
        Setback::Again { problem: format!("answers {status}"), asked: asked.map(Duration::from_secs) }
    }

    async fn append(&self, response: Response, begun: u64, file: &HubFile, partial: &Path) -> Result<(), Setback> {
        let failed = |error| Setback::from(self.inner.blobs.failed(partial, error));
        let open = OpenOptions::new().create(true).append(true).open(partial).await.map_err(failed)?;
        let mut writer = BufWriter::with_capacity(1 << 20, open);
        let mut content = response.bytes_stream();
        let mut received = begun;
        let mut cut = None;
        while let Some(chunk) = content.next().await {
            match chunk {
                Ok(chunk) => {
                    received += chunk.len() as u64;
                    if received > file.bytes {
                        drop(writer);
                        truncate(&self.inner.blobs, partial, 0).await?;
                        return Err(again(format!("sends more than the {} bytes that it announced", file.bytes)));
                    }
                    writer.write_all(&chunk).await.map_err(failed)?;
                }
                Err(error) => {
                    cut = Some(unreachable_because(&error));
                    break;
                }
            }
        }
        // What has come is kept, whatever cut it.
        writer.flush().await.map_err(failed)?;
        match cut {
            Some(problem) => Err(again(problem)),
            None if received < file.bytes => Err(again(format!("broke off after {received} of {} bytes", file.bytes))),
            None => Ok(()),
        }
    }
}

fn wrong(pinned: &Pinned, file: &HubFile, checksum: &Checksum, found: String) -> HubError {
    let expected = match checksum {
        Checksum::GitSha1(sha1) => format!("git's sha1 {sha1}"),
        Checksum::Lfs(Some(sha256)) => format!("sha256 {sha256}"),
        Checksum::Lfs(None) => format!("{} bytes", file.bytes),
    };
    HubError::Corrupt { repo: pinned.repo.clone(), file: file.path.clone(), expected, found }
}

/// The sha256 of a large file, as the hub's own answer carries it.
fn sha256_in(headers: &HeaderMap) -> Option<String> {
    let tag = headers.get("x-linked-etag").or_else(|| headers.get(ETAG))?.to_str().ok()?;
    let tag = tag.trim_start_matches("W/").trim_matches('"');
    (tag.len() == 64 && tag.bytes().all(|c| c.is_ascii_hexdigit())).then(|| tag.to_ascii_lowercase())
}

/// Whether the answer is the part from `begun` on.
fn starts_at(response: &Response, begun: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    range.is_some_and(|range| range.trim().starts_with(&format!("bytes {begun}-")))
}

async fn length(path: &Path) -> u64 {
    tokio::fs::metadata(path).await.map_or(0, |file| file.len())
}

async fn truncate(blobs: &Blobs, path: &Path, to: u64) -> Result<(), BlobError> {
    match File::options().write(true).open(path).await {
        Ok(file) => file.set_len(to).await.map_err(|error| blobs.failed(path, error)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(blobs.failed(path, error)),
    }
}

impl Blobs {
    /// Makes a finished download a blob, if it is what it should be; otherwise it is thrown away, and the answer is
    /// what it was instead.
    async fn settle(self, partial: &Path, checksum: &Checksum) -> Result<Result<Stored, String>, BlobError> {
        let (partial, checksum): (PathBuf, _) = (partial.to_owned(), checksum.clone());
        let path = partial.clone();
        let settled = tokio::task::spawn_blocking(move || {
            if let Checksum::GitSha1(expected) = &checksum {
                let mut git = Sha1::new();
                let length = std::fs::metadata(&path).map_err(|error| self.failed(&path, error))?.len();
                git.update(format!("blob {length}\0"));
                let mut file = std::fs::File::open(&path).map_err(|error| self.failed(&path, error))?;
                self.each_chunk(&mut file, |chunk| {
                    git.update(chunk);
                    Ok(())
                })?;
                let found = hex(&git.finalize());
                if found != *expected {
                    std::fs::remove_file(&path).map_err(|error| self.failed(&path, error))?;
                    return Ok(Err(format!("git's sha1 {found}")));
                }
            }
            let expected = match &checksum {
                Checksum::Lfs(expected) => expected.as_deref(),
                Checksum::GitSha1(_) => None,
            };
            match self.adopt(&path, expected) {
                Ok(stored) => Ok(Ok(stored)),
                Err(BlobError::Mismatch { found, .. }) => Ok(Err(format!("sha256 {found}"))),
                Err(error) => Err(error),
            }
        });
        settled.await.unwrap_or_else(|error| Err(BlobError::Io { path: partial, error: std::io::Error::other(error) }))
    }
}
