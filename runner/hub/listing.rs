//! What the hub says about a repository: the commit behind a revision, and the files at a commit.

use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, Stream, TryStreamExt};
use hf_hub::{HFError, HFResult};

use super::{Hub, HubError, Kind, Pinned};

/// Files of a folder at most; what has more is no model, and no dataset that is loaded file by file.
const MOST_FILES: usize = 10_000;

/// A file in a repository at a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubFile {
    /// Within the repository.
    pub path: String,
    pub bytes: u64,
    pub checksum: Checksum,
}

/// What a file's content is checked by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checksum {
    /// Git's own: sha1 over a header and the content.
    GitSha1(String),
    /// A large file; the listing does not always have its sha256, the download's first answer does.
    Lfs(Option<String>),
}

impl Hub {
    /// The commit that a revision (by default `main`) stands for now.
    pub async fn pin(&self, kind: Kind, repo: &str, revision: Option<&str>) -> Result<Pinned, HubError> {
        let revision = revision.unwrap_or("main");
        let what = format!("revision `{revision}` of `{repo}`");
        let commit = self
            .ask(repo, &what, |api| {
                async move {
                    let (owner, name) = hf_hub::split_id(repo);
                    Ok(match kind {
                        Kind::Model => api.model(owner, name).info().revision(revision).send().await?.sha,
                        Kind::Dataset => api.dataset(owner, name).info().revision(revision).send().await?.sha,
                    })
                }
                .boxed()
            })
            .await?;
        match commit.filter(|commit| is_commit(commit)) {
            Some(commit) => Ok(Pinned { kind, repo: repo.to_owned(), commit }),
            None => {
                let problem = format!("names no commit for {what}");
                Err(HubError::Unavailable { problem, tries: 1 })
            }
        }
    }

    /// The files directly in a folder of the repository; `None` is its root.
    pub async fn files(&self, pinned: &Pinned, folder: Option<&str>) -> Result<Vec<HubFile>, HubError> {
        let Pinned { kind, repo, commit } = pinned;
        let what = format!("folder `{}` in `{repo}` at {commit}", folder.unwrap_or("/"));
        let folder = folder.map(str::to_owned);
        let entries = self
            .ask(repo, &what, |api| {
                let (revision, folder) = (commit.clone(), folder.clone());
                async move {
                    let (owner, name) = hf_hub::split_id(repo);
                    match kind {
                        Kind::Model => {
                            let repo = api.model(owner, name);
                            let tree = repo.list_tree().revision(revision).maybe_path_in_repo(folder).limit(MOST_FILES);
                            collect(tree.send()?).await
                        }
                        Kind::Dataset => {
                            let repo = api.dataset(owner, name);
                            let tree = repo.list_tree().revision(revision).maybe_path_in_repo(folder).limit(MOST_FILES);
                            collect(tree.send()?).await
                        }
                    }
                }
                .boxed()
            })
            .await?;
        Ok(entries.into_iter().filter_map(file).collect())
    }

    /// Asks until there is an answer, or patience ends. `what` is wanted, in words. The question's future is boxed,
    /// because the compiler cannot show that one of an `AsyncFn` may move between threads.
    async fn ask<'q, T>(
        &self,
        repo: &str,
        what: &str,
        question: impl Fn(hf_hub::HFClient) -> BoxFuture<'q, HFResult<T>>,
    ) -> Result<T, HubError> {
        let Some(api) = &self.inner.api else {
            return Err(HubError::Offline(format!("hf:{repo}")));
        };
        let mut failures = 0;
        loop {
            let error = match question(api.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let (problem, asked) = match judge(repo, what, &error) {
                Judgement::Final(error) => return Err(error),
                Judgement::Again { problem, asked } => (problem, asked),
            };
            failures += 1;
            let Some(wait) = self.inner.patience.wait(failures, asked, rand::random()) else {
                return Err(HubError::Unavailable { problem, tries: failures });
            };
            tracing::warn!(repo, problem, failures, ?wait, "asking the hub again");
            tokio::time::sleep(wait).await;
        }
    }
}

async fn collect<T>(entries: impl Stream<Item = HFResult<T>>) -> HFResult<Vec<T>> {
    entries.try_collect().await
}

fn file(entry: hf_hub::repository::RepoTreeEntry) -> Option<HubFile> {
    match entry {
        hf_hub::repository::RepoTreeEntry::File { oid, size, path, lfs, .. } => {
            let checksum = match lfs {
                Some(lfs) => Checksum::Lfs(lfs.sha256),
                None => Checksum::GitSha1(oid),
            };
            Some(HubFile { path, bytes: size, checksum })
        }
        hf_hub::repository::RepoTreeEntry::Directory { .. } => None,
    }
}

/// Whether the text is a full commit id, which never moves.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|c| c.is_ascii_hexdigit())
}

/// What an error of hf-hub means for us.
enum Judgement {
    Final(HubError),
    Again { problem: String, asked: Option<Duration> },
}

fn judge(repo: &str, what: &str, error: &HFError) -> Judgement {
    let asked = match error {
        HFError::RateLimited { retry_after, .. } => *retry_after,
        _ => None,
    };
    let context = match error {
        HFError::Http { context }
        | HFError::AuthRequired { context }
        | HFError::Forbidden { context }
        | HFError::Conflict { context }
        | HFError::RateLimited { context, .. } => Some(context),
        HFError::RepoNotFound { context, .. }
        | HFError::RevisionNotFound { context, .. }
        | HFError::EntryNotFound { context, .. } => context.as_ref(),
        _ => None,
    };
    let problem = match (context, error) {
        (Some(context), _) => {
            let status = context.status.as_u16();
            match refusal(repo, what, status, context.error_code.as_deref()) {
                Some(refused) => return Judgement::Final(refused),
                None => format!("answers {}", context.status),
            }
        }
        // The error's own words would show the address.
        (None, HFError::Request { source, .. }) => unreachable_because(source),
        (None, HFError::Json(error)) => format!("answers with something unreadable: {error}"),
        (None, HFError::MalformedResponse { what, .. }) => format!("answers incompletely: {what}"),
        (None, other) => return Judgement::Final(HubError::Setup(other.to_string())),
    };
    Judgement::Again { problem, asked }
}

/// Why the hub cannot be reached, without the address, which may be a signed one.
pub(super) fn unreachable_because(error: &reqwest::Error) -> String {
    let mut source = std::error::Error::source(error);
    let mut deepest = None;
    while let Some(inner) = source {
        deepest = Some(inner.to_string());
        source = inner.source();
    }
    let kind = match error {
        error if error.is_timeout() => "does not answer in time",
        error if error.is_connect() => "cannot be reached",
        _ => "broke the connection off",
    };
    deepest.map_or_else(|| kind.to_owned(), |deepest| format!("{kind}: {deepest}"))
}

/// What a status means that will not be another one in a minute. The hub says 401 about what does not exist as well,
/// so as not to tell strangers what does; its error code tells them apart.
pub(super) fn refusal(repo: &str, what: &str, status: u16, code: Option<&str>) -> Option<HubError> {
    let page = format!("https://huggingface.co/{repo}");
    let denied = |next: String| Some(HubError::Denied { repo: repo.to_owned(), status, next });
    let missing = |what: String, next: &str| Some(HubError::NotFound { what, next: next.to_owned() });
    const CHECK: &str = "check owner and name; for a private one give drydock a token that may read it";
    match (status, code) {
        (401 | 403 | 404, Some("RepoNotFound")) => missing(format!("repository `{repo}`"), CHECK),
        (401 | 403, Some("GatedRepo")) => denied(format!(
            "accept its licence at {page} and give drydock a token of that account (HF_TOKEN or hub.token_file)"
        )),
        (401, _) => denied("give drydock a valid token (HF_TOKEN or hub.token_file)".into()),
        (403, _) => denied(format!("ask for access at {page}, or give drydock a token that may read it")),
        (404, Some("RevisionNotFound")) => missing(what.to_owned(), "check the branch, tag or commit behind the @"),
        (404, Some("EntryNotFound")) => missing(what.to_owned(), "check the path"),
        (404, _) => missing(what.to_owned(), CHECK),
        (408 | 425 | 429, _) | (500.., _) => None,
        _ => Some(HubError::Unavailable { problem: format!("answers {status}"), tries: 1 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(status: u16, code: Option<&str>) -> String {
        refusal("o/n", "revision `main` of `o/n`", status, code)
            .map_or_else(|| "again".into(), |error| error.to_string())
    }

    #[test]
    fn refusals_are_told_apart_by_their_next_steps() {
        assert!(said(401, Some("GatedRepo")).contains("accept its licence at https://huggingface.co/o/n"));
        assert!(said(403, Some("GatedRepo")).contains("accept its licence"));
        assert!(said(401, None).contains("give drydock a valid token"));
        assert!(said(401, Some("RepoNotFound")).starts_with("the hub has no repository `o/n`"));
        assert!(
            said(404, Some("RevisionNotFound"))
                .starts_with("the hub has no revision `main` of `o/n`; check the branch")
        );
        assert!(said(404, None).contains("check owner and name"));
        assert_eq!(said(429, None), "again");
        assert_eq!(said(503, None), "again");
    }
}
