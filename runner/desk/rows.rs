//! What a job's rows look like to its worker, for plans and for datasets that are loaded.

use drydock_spec::dataset::{Columns, Format};
use drydock_spec::finetune::Objective;
use drydock_spec::lengths::RowLengths;
use drydock_spec::{JobArgs, JobSpec, Preview};

use super::{Desk, DeskError};
use crate::api::{LoadDataset, LoadedDataset, PlanView, RenderedRow, RowsPreview, Submission};
use crate::inputs::bring;
use crate::plan::lengths::Counting;
use crate::plan::{ModelSource, Plan, PlanError, ResolvedInputs};
use crate::preview::PreviewError;
use crate::store::StoreError;

impl Desk {
    /// What a dry run answers: the plan with what the worker would make of the rows. Where that says anything new about their
    /// lengths, it is planned again with them.
    pub(super) async fn planned(&self, submission: Submission) -> Result<PlanView, DeskError> {
        let Submission { job, limits, .. } = submission;
        let plan = self.planner.plan(job.clone(), &limits).await?;
        let before = Counting::of(&plan.spec, &plan.inputs);
        let known = match &before {
            Some(of) => self.store.row_lengths(of).await?,
            None => None,
        };
        let rows = Box::pin(self.rows(&plan.spec, &plan.inputs)).await;
        let now = rows.as_ref().ok().and_then(counted);
        let plan = if now.is_some() && now != known { self.planner.plan(job, &limits).await? } else { plan };
        self.shown(self.with_remedies(plan).await?, rows)
    }

    /// The plan for people to see.
    pub(super) fn shown(&self, plan: Plan, rows: Result<Preview, NoRows>) -> Result<PlanView, DeskError> {
        let mut warnings = plan.warnings;
        let preview = match rows {
            Ok(preview) => Some(preview),
            // Only what a model is finetuned on is rendered by that model.
            Err(NoRows::NotRendered) => None,
            // The worker knows that the job would fail: better now than later.
            Err(NoRows::Preview(error @ PreviewError::Refused(_))) => return Err(error.into()),
            Err(error) => {
                warnings.push(format!("the rows could not be previewed: {error}"));
                None
            }
        };
        let known = preview.as_ref().filter(|preview| preview.tokenized_rows == preview.rows);
        // How many packs the rows make shows only when all of them are put together.
        let recipe = plan.spec.recipe().filter(|recipe| !recipe.packing);
        let total_steps = recipe.zip(known).map(|(recipe, preview)| recipe.steps(preview.dataset.train_rows).1);
        // Where a tokenizer has seen all rows, it has the last word.
        let cut = plan.cut.and_then(|cut| match known {
            Some(preview) => cut.tokenized(&preview.dataset),
            None => Some(cut),
        });
        warnings.extend(cut.map(|cut| cut.to_string()));
        Ok(PlanView {
            job: plan.spec,
            inputs: plan.inputs,
            limits: plan.limits,
            estimate: plan.estimate,
            foreseen: plan.foreseen,
            cut,
            rows: preview.map(rendered),
            total_steps,
            warnings,
        })
    }

    /// Registers a dataset and shows its first rows: rendered and tokenized by a model if one is named.
    pub async fn load_dataset(&self, request: LoadDataset) -> Result<LoadedDataset, DeskError> {
        let (model, columns) = (request.model.clone(), request.columns.clone());
        if let Some(model) = &model {
            // A name that nobody knows is better refused before anything is registered.
            self.models.resolve(model).await?;
        }
        let mut loaded = self.datasets.load(request).await?;
        let Some(model) = model else { return Ok(loaded) };
        // From here on the dataset is registered, whatever this model makes of it.
        match self.rows_for(model, columns, &loaded).await {
            Ok(preview) => loaded.preview = rendered(preview),
            Err(error) => loaded.warnings.push(format!("not rendered with the model: {error}")),
        }
        Ok(loaded)
    }

    async fn rows_for(
        &self,
        model: String,
        columns: Option<Columns>,
        loaded: &LoadedDataset,
    ) -> Result<Preview, NoRows> {
        let objective = match loaded.dataset.format {
            Format::Preference => Objective::Dpo,
            Format::Labelled => Objective::Kto,
            _ => Objective::Sft,
        };
        let args = drydock_spec::FinetuneArgs {
            model,
            dataset: loaded.dataset.name.clone(),
            columns,
            objective: Some(objective),
            // Of a single row nothing could be held out.
            test_size: (loaded.dataset.rows == 1).then_some(0.0),
            ..drydock_spec::FinetuneArgs::default()
        };
        let plan = self.planner.plan(JobArgs::Finetune(args), &drydock_spec::LimitArgs::default()).await?;
        self.rows(&plan.spec, &plan.inputs).await
    }

    /// What the worker would make of the rows; how long they are is kept for plans to come.
    pub(super) async fn rows(&self, spec: &JobSpec, inputs: &ResolvedInputs) -> Result<Preview, NoRows> {
        let JobSpec::Finetune(_) = spec else { return Err(NoRows::NotRendered) };
        match inputs.model.as_ref().map(|model| &model.source) {
            Some(ModelSource::Hub { .. }) => return Err(NoRows::NotFetched),
            Some(ModelSource::Awaited { .. }) | None => return Err(NoRows::NotMade),
            Some(ModelSource::Stored { .. }) => {}
        }
        // Rows are rendered by the model's tokenizer; an adapter has no part in it.
        let mut inputs = inputs.clone();
        inputs.model.iter_mut().for_each(|model| model.adapter = None);
        let folders = bring(&self.models, &self.datasets, &inputs).await.map_err(PreviewError::Refused)?;
        let preview = self.previews.preview(spec.clone(), folders).await?;
        if let (Some(of), Some(lengths)) = (Counting::of(spec, &inputs), counted(&preview)) {
            self.store.keep_row_lengths(&of, &lengths).await?;
        }
        Ok(preview)
    }
}

/// How long all of the rows are, where the worker has seen all of them.
fn counted(preview: &Preview) -> Option<RowLengths> {
    preview.lengths.clone().filter(|lengths| preview.tokenized_rows == preview.rows && lengths.rows > 0)
}

/// There is nothing to show.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoRows {
    #[error("the model is fetched from the hub when the job starts")]
    NotFetched,
    #[error("the model is made by a job that has not ended yet")]
    NotMade,
    #[error("rows are rendered for finetunes only")]
    NotRendered,
    #[error(transparent)]
    Preview(#[from] PreviewError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn rendered(preview: Preview) -> RowsPreview {
    RowsPreview {
        format: preview.format,
        dataset: Some(preview.dataset),
        rendered: preview
            .rendered
            .into_iter()
            .map(|row| RenderedRow {
                text: row.text,
                supervised: row.supervised,
                tokens: Some(row.tokens),
                supervised_tokens: Some(row.supervised_tokens),
            })
            .collect(),
    }
}
