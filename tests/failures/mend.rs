//! What is offered against failures, applied: the jobs have to pass.

use drydock::api::{ApplyRemedy, JobView, RemedyView};
use drydock::desk::Answer;
use drydock::remedy::verdict::Verdict;
use drydock_spec::{JobId, Owner, Remedy};

use crate::case::{Case, Deed, Guise, MENDED};
use crate::order::Order;
use crate::place::{Place, label};
use crate::table::{Finding, Played};

/// Remedies that count as offered: the first ones.
const OFFERED: usize = 2;

/// What became of a failed job that somebody took care of.
pub(crate) struct Mended {
    pub(crate) case: Case,
    pub(crate) offered: Vec<RemedyView>,
    /// The place of the right one among those offered, from 0, and the job made with it.
    pub(crate) applied: Option<(usize, JobView, Option<Verdict>)>,
}

/// Those of the findings that are to be mended in this way.
pub(crate) fn to_mend(findings: &[Finding], so: impl Fn(Deed) -> bool) -> Vec<&Finding> {
    let wanted = |finding: &&Finding| finding.case.mend.is_some_and(|mend| so(mend.deed));
    findings
        .iter()
        .filter(|finding| finding.number == MENDED && finding.view.state == "failed")
        .filter(wanted)
        .collect()
}

impl Mended {
    /// The place of the remedy that has worked, from 0.
    pub(crate) fn place(&self) -> Option<usize> {
        let (at, job, verdict) = self.applied.as_ref()?;
        (job.state == "succeeded" && *verdict == Some(Verdict::Worked)).then_some(*at)
    }
}

impl Played {
    /// Mends what was found last, if it is to be mended.
    pub(crate) async fn mend_last(&mut self, place: &Place) {
        let last = self.findings.len() - 1;
        self.mended.extend(place.mend(&to_mend(&self.findings[last..], |_| true)).await);
    }
}

impl Place {
    /// Does what is to be done about each, applies the remedy that is offered, and waits for all the new jobs.
    pub(crate) async fn mend(&self, findings: &[&Finding]) -> Vec<Mended> {
        // All are asked about before the first is tried: no record tells yet what to offer.
        let mut asked = Vec::new();
        for finding in findings {
            self.do_first(finding).await;
            let offered = self.house.desk.suggest(finding.view.id).await.unwrap().remedies;
            asked.push((finding, offered));
        }
        let mut begun = Vec::new();
        for (finding, offered) in asked {
            let right = finding.case.mend.unwrap().remedy;
            let at = offered.iter().take(OFFERED).position(|one| one.remedy.to_string().starts_with(right));
            let made = match at {
                Some(at) => Some((at, self.apply(finding.view.id, &offered[at].remedy).await)),
                None => None,
            };
            begun.push((finding.case, offered, made));
        }
        let mut mended = Vec::new();
        for (case, offered, made) in begun {
            let applied = match made {
                Some((at, job)) => {
                    let view = self.until(job, JobView::is_done).await;
                    let trials = self.house.desk.store.trials(job).await.unwrap();
                    let verdict = trials.iter().find(|trial| trial.job == job).and_then(|trial| trial.verdict);
                    Some((at, view, verdict))
                }
                None => None,
            };
            mended.push(Mended { case, offered, applied });
        }
        mended
    }

    /// A job like the failed one, with the remedy worked in.
    pub(crate) async fn apply(&self, failed: JobId, remedy: &Remedy) -> JobId {
        let asked = ApplyRemedy { remedy: Some(remedy.clone()), ..ApplyRemedy::default() };
        match self.house.desk.apply_remedy(Owner::local(), failed, asked).await {
            Ok(Answer::Submitted(submitted)) => submitted.job.id,
            other => panic!("{remedy} cannot be applied to {failed}: {other:#?}"),
        }
    }

    async fn do_first(&self, finding: &Finding) {
        let Finding { case, number, view, .. } = finding;
        let name = label(case.name, *number);
        match case.mend.map(|mend| mend.deed) {
            Some(Deed::BringsAgain) => self.bring_again(*case, *number).await,
            Some(Deed::MendsHub) => self.hub.spoil(&format!("models/lab/{name}"), None),
            Some(Deed::MendsInput) => {
                self.bring_again(*case, *number).await;
                let job = self.house.desk.store.job(view.id).await.unwrap();
                let input = job.spec.adapter().unwrap().trim_start_matches("job:").parse().unwrap();
                let better = self.apply(input, &"outside: mend_dataset".parse().unwrap()).await;
                let view = self.until(better, JobView::is_done).await;
                assert_eq!(view.state, "succeeded", "{view:#?}");
            }
            // Done once for all of them.
            Some(Deed::Nothing | Deed::Configures | Deed::MendsWorker) | None => {}
        }
    }

    /// The case's model and rows, as they were before they were damaged.
    async fn bring_again(&self, case: Case, number: u32) {
        let Order { model, rows, .. } = (case.order)(Guise::of(case.name, number));
        let name = label(case.name, number);
        self.add_model(&name, model).await;
        self.load_rows(&name, rows).await;
    }
}
