//! Which user a container runs as, and who that is on the host.
//!
//! Much of what the kernel counts, it counts by user and not by container: watched files, pipes, message queues, pending
//! signals. Containers that share a user share these bounds, and one can use up what another needs. So every container
//! may be given a user of its own.
//!
//! Who has which user is written down nowhere: an attempt's events file belongs to it, is made before the container and
//! removed after it. These files are what is looked at, so that a gateway that was killed doubles no user.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::attempt_dir::EVENTS_FILE;

/// What an engine that remaps users adds to a container's ids to have the host's; nothing by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IdMap {
    /// The host's user that is 0 inside.
    pub uid: u32,
    /// The host's group that is 0 inside.
    pub gid: u32,
}

impl IdMap {
    /// The host's user and group for those of a container.
    #[must_use]
    pub fn on_host(self, (uid, gid): (u32, u32)) -> (u32, u32) {
        (self.uid.saturating_add(uid), self.gid.saturating_add(gid))
    }

    /// The user and group inside for those of the host.
    #[must_use]
    pub fn inside(self, (uid, gid): (u32, u32)) -> (u32, u32) {
        (uid.saturating_sub(self.uid), gid.saturating_sub(self.gid))
    }
}

/// Users by number, both ends included, such as `70000-70999`. Root is in none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserRange {
    first: u32,
    last: u32,
}

/// It is no range of users.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no range of users; write the first above 0, a dash and the last, such as 70000-70999")]
pub struct BadRange(String);

impl FromStr for UserRange {
    type Err = BadRange;

    fn from_str(text: &str) -> Result<Self, BadRange> {
        let bad = || BadRange(text.to_owned());
        let (first, last) = text.split_once('-').ok_or_else(bad)?;
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| bad());
        let (first, last) = (number(first)?, number(last)?);
        // The kernel takes the highest number for "no user".
        if first == 0 || last < first || last == u32::MAX { Err(bad()) } else { Ok(Self { first, last }) }
    }
}

impl TryFrom<String> for UserRange {
    type Error = BadRange;

    fn try_from(text: String) -> Result<Self, BadRange> {
        text.parse()
    }
}

impl From<UserRange> for String {
    fn from(range: UserRange) -> Self {
        range.to_string()
    }
}

impl fmt::Display for UserRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// The users that containers run as.
#[derive(Debug, Clone)]
pub struct Users {
    inside: Inside,
    ids: IdMap,
}

#[derive(Debug, Clone)]
enum Inside {
    /// All run as this user and group.
    Shared(u32, u32),
    /// Each runs as a user, and as the group of the same number, that no attempt has whose folder lies in one of these.
    Own { range: UserRange, roots: Vec<PathBuf> },
}

/// Why no user could be chosen.
#[derive(Debug, thiserror::Error)]
pub enum NoUser {
    #[error("every user of sandbox.uids = {0} belongs to a container; widen the range, or wait for one to end")]
    AllTaken(UserRange),
    #[error("cannot see whose {path} is: {source}")]
    Unknown { path: PathBuf, source: io::Error },
}

impl Users {
    /// All containers run as this user and group.
    #[must_use]
    pub fn shared(uid: u32, gid: u32) -> Self {
        Self { inside: Inside::Shared(uid, gid), ids: IdMap::default() }
    }

    /// Each container has a user of its own. `roots` are the folders that hold attempts' folders: a user of any of them
    /// is taken.
    #[must_use]
    pub fn own(range: UserRange, roots: Vec<PathBuf>) -> Self {
        Self { inside: Inside::Own { range, roots }, ids: IdMap::default() }
    }

    /// The same on an engine that remaps users.
    #[must_use]
    pub fn mapped(self, ids: IdMap) -> Self {
        Self { ids, ..self }
    }

    /// Chooses a user and gives it away: `give` has to leave an events file behind that belongs to it, in the host's
    /// numbers. Until it has, nobody else chooses.
    pub(super) fn give<T, E: From<NoUser>>(&self, give: impl FnOnce((u32, u32)) -> Result<T, E>) -> Result<T, E> {
        static CHOOSING: Mutex<()> = Mutex::new(());
        match &self.inside {
            Inside::Shared(uid, gid) => give(self.ids.on_host((*uid, *gid))),
            Inside::Own { range, roots } => {
                // What it guards is on the disk, and whole whatever a thread left it in.
                let _one_at_a_time = CHOOSING.lock().unwrap_or_else(PoisonError::into_inner);
                let taken = taken(roots)?;
                let mut all = (range.first..=range.last).map(|id| self.ids.on_host((id, id)));
                let free = all.find(|(uid, _)| !taken.contains(uid)).ok_or(NoUser::AllTaken(*range))?;
                give(free)
            }
        }
    }
}

/// The host's users that attempts' folders in `roots` belong to.
fn taken(roots: &[PathBuf]) -> Result<BTreeSet<u32>, NoUser> {
    let mut taken = BTreeSet::new();
    for root in roots {
        let Some(entries) = unless_gone(root, std::fs::read_dir(root))? else { continue };
        for entry in entries {
            let Some(entry) = unless_gone(root, entry)? else { continue };
            let events = entry.path().join(EVENTS_FILE);
            taken.extend(unless_gone(&events, events.symlink_metadata())?.map(|file| file.uid()));
        }
    }
    Ok(taken)
}

/// A folder that is removed meanwhile has no container any more, and its user is free.
fn unless_gone<T>(path: &Path, found: io::Result<T>) -> Result<Option<T>, NoUser> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(source) => Err(NoUser::Unknown { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> UserRange {
        text.parse().unwrap()
    }

    /// Gives a user away to a new folder of this name, and says which.
    fn give(users: &Users, root: &Path, name: &str) -> Result<u32, NoUser> {
        users.give(|(uid, gid)| {
            std::fs::create_dir(root.join(name)).unwrap();
            let events = root.join(name).join(EVENTS_FILE);
            std::fs::write(&events, "").unwrap();
            std::os::unix::fs::chown(&events, Some(uid), Some(gid)).unwrap();
            Ok(uid)
        })
    }

    #[test]
    fn a_range_is_two_numbers_above_root() {
        assert_eq!(range("70000-70999").to_string(), "70000-70999");
        assert_eq!(range("7 - 7").to_string(), "7-7");
        for bad in ["", "7", "0-7", "8-7", "-7", "7-", "a-b", "1-4294967295", "1-99999999999"] {
            assert!(bad.parse::<UserRange>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_engines_map_goes_both_ways() {
        let ids = IdMap { uid: 200_000, gid: 300_000 };
        assert_eq!(ids.on_host((1, 2)), (200_001, 300_002));
        assert_eq!(ids.inside(ids.on_host((1, 2))), (1, 2));
    }

    #[test]
    fn two_attempts_never_have_the_same_user_and_the_folders_are_what_tells() {
        if !rustix::process::geteuid().is_root() {
            return super::super::attempt_dir::tests::skipped("only root gives files to others");
        }
        let (attempts, previews) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let roots = vec![attempts.path().to_owned(), previews.path().to_owned(), attempts.path().join("not-made-yet")];
        let users = Users::own(range("70000-70002"), roots.clone());
        assert_eq!(give(&users, attempts.path(), "a").unwrap(), 70_000);
        assert_eq!(give(&users, previews.path(), "b").unwrap(), 70_001);
        // What a process that starts anew finds.
        let users = Users::own(range("70000-70002"), roots.clone());
        assert_eq!(give(&users, attempts.path(), "c").unwrap(), 70_002);
        let error = give(&users, attempts.path(), "d").unwrap_err();
        assert!(error.to_string().contains("sandbox.uids = 70000-70002"), "{error}");
        std::fs::remove_dir_all(attempts.path().join("a")).unwrap();
        assert_eq!(give(&users, attempts.path(), "d").unwrap(), 70_000);
        // Whom an engine maps elsewhere is somebody else.
        let mapped = Users::own(range("70000-70002"), roots).mapped(IdMap { uid: 100_000, gid: 100_000 });
        assert_eq!(give(&mapped, attempts.path(), "e").unwrap(), 170_000);
    }

    #[test]
    fn users_chosen_at_the_same_time_differ() {
        if !rustix::process::geteuid().is_root() {
            return super::super::attempt_dir::tests::skipped("only root gives files to others");
        }
        let root = tempfile::tempdir().unwrap();
        let users = Users::own(range("70000-70031"), vec![root.path().to_owned()]);
        let given: BTreeSet<u32> = std::thread::scope(|scope| {
            let (users, root) = (&users, root.path());
            let threads: Vec<_> =
                (0..32).map(|number| scope.spawn(move || give(users, root, &number.to_string()).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(given.len(), 32);
    }
}
