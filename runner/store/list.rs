//! Lists of jobs, a page at a time.

use drydock_spec::{JobId, Owner};
use sqlx::{QueryBuilder, Sqlite};

use super::jobs::{COLUMNS, Job, job};
use super::{Store, StoreError};

/// Which jobs to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub owner: Option<Owner>,
    /// Words of [`JobState::word`]; empty means every state.
    pub states: Vec<String>,
    /// Only jobs submitted before this one.
    pub before: Option<JobId>,
    pub limit: u32,
}

/// Some jobs, newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    pub jobs: Vec<Job>,
    /// Whether there are older ones.
    pub more: bool,
}

impl Store {
    /// The jobs that `filter` lets through, newest first.
    pub async fn jobs(&self, filter: &Filter) -> Result<Page, StoreError> {
        let rows = selection("-- store::list::jobs\n", filter).build().fetch_all(&self.pool).await?;
        let more = rows.len() > filter.limit as usize;
        let jobs = rows.iter().take(filter.limit as usize).map(job).collect::<Result<_, _>>()?;
        Ok(Page { jobs, more })
    }
}

/// One row more than the page has. An arm for each state comes in order from its index, and the arms are merged: nothing
/// is sorted.
fn selection(opening: &str, filter: &Filter) -> QueryBuilder<Sqlite> {
    let mut sql = QueryBuilder::<Sqlite>::new(opening);
    let mut states: Vec<_> = filter.states.iter().map(Some).collect();
    states.sort_unstable();
    states.dedup();
    if states.is_empty() {
        states.push(None);
    }
    for (arm, state) in states.into_iter().enumerate() {
        sql.push(if arm > 0 { " UNION ALL " } else { "" });
        sql.push("SELECT ").push(COLUMNS).push(", position FROM jobs WHERE TRUE");
        if let Some(owner) = &filter.owner {
            sql.push(" AND owner = ").push_bind(owner.0.clone());
        }
        if let Some(word) = state {
            sql.push(" AND state = ").push_bind(word.clone());
        }
        if let Some(before) = filter.before {
            sql.push(" AND position < (SELECT position FROM jobs WHERE id = ").push_bind(before.to_string());
            sql.push(")");
        }
    }
    sql.push(" ORDER BY position DESC LIMIT ").push_bind(i64::from(filter.limit) + 1);
    sql
}

#[cfg(test)]
mod tests {
    use sqlx::Row as _;

    use super::*;
    use crate::clock::Clock;

    /// A page that is sorted, or looked for among all jobs, takes longer the more jobs there are.
    #[tokio::test]
    async fn whatever_a_list_is_asked_for_it_comes_in_order_from_an_index() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("drydock.db"), Clock::System).await.unwrap();
        for owner in [None, Some(Owner::local())] {
            for states in [vec![], vec!["queued".to_owned()], vec!["failed".to_owned(), "queued".to_owned()]] {
                for before in [None, Some(JobId::from_parts(1, 1))] {
                    let filter = Filter { owner: owner.clone(), states: states.clone(), before, limit: 50 };
                    let plan = selection("EXPLAIN QUERY PLAN ", &filter).build().fetch_all(&store.pool).await.unwrap();
                    let steps: Vec<String> = plan.iter().map(|step| step.get("detail")).collect();
                    let slow = |step: &String| {
                        let in_order = step.contains("jobs_by_position") && owner.is_none() && states.is_empty();
                        step.contains("TEMP B-TREE") || (step.contains("SCAN jobs") && !in_order)
                    };
                    assert!(!steps.iter().any(slow), "{filter:?}: {steps:#?}");
                }
            }
        }
    }
}
