//! What a job's rows look like to its worker, for plans and for datasets that are loaded.

use drydock_spec::dataset::Columns;
use drydock_spec::{JobArgs, JobSpec, Preview};

use super::{Desk, DeskError};
use crate::api::{LoadDataset, LoadedDataset, PlanView, RenderedRow, RowsPreview};
use crate::plan::{DatasetInput, ModelSource, Plan, PlanError, ResolvedInputs};
use crate::preview::PreviewError;
use crate::sandbox::attempt_dir::InputFolders;

impl Desk {
    /// The plan for people to see, with what the worker would make of the rows.
    pub(super) async fn shown(&self, plan: Plan) -> Result<PlanView, DeskError> {
        let mut warnings = plan.warnings;
        let preview = match self.rows(&plan.spec, &plan.inputs).await {
            Ok(preview) => Some(preview),
            // The worker knows that the job would fail: better now than later.
            Err(NoRows::Preview(error @ PreviewError::Refused(_))) => return Err(error.into()),
            Err(error) => {
                warnings.push(format!("the rows could not be previewed: {error}"));
                None
            }
        };
        let JobSpec::Finetune(finetune) = &plan.spec;
        let total_steps = preview
            .as_ref()
            .filter(|preview| preview.tokenized_rows == preview.rows)
            .map(|preview| finetune.steps(preview.dataset.train_rows).1);
        Ok(PlanView {
            job: plan.spec,
            inputs: plan.inputs,
            limits: plan.limits,
            estimate: plan.estimate,
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
        let args = drydock_spec::FinetuneArgs {
            model,
            dataset: loaded.dataset.name.clone(),
            columns,
            ..drydock_spec::FinetuneArgs::default()
        };
        let plan = self.planner.plan(JobArgs::Finetune(args), &drydock_spec::LimitArgs::default()).await?;
        self.rows(&plan.spec, &plan.inputs).await
    }

    async fn rows(&self, spec: &JobSpec, inputs: &ResolvedInputs) -> Result<Preview, NoRows> {
        if matches!(inputs.model.source, ModelSource::Hub { .. }) {
            return Err(NoRows::NotFetched);
        }
        let model = self.models.ensure(&inputs.model).await.map_err(PreviewError::Refused)?;
        let folder = |input: &DatasetInput| self.datasets.folder(input).map_err(PreviewError::Refused);
        let dataset = folder(&inputs.dataset)?;
        let eval_dataset = inputs.eval_dataset.as_ref().map(folder).transpose()?;
        Ok(self.previews.preview(spec.clone(), InputFolders { model, dataset, eval_dataset }).await?)
    }
}

/// There is nothing to show.
#[derive(Debug, thiserror::Error)]
enum NoRows {
    #[error("the model is fetched from the hub when the job starts")]
    NotFetched,
    #[error(transparent)]
    Preview(#[from] PreviewError),
    #[error(transparent)]
    Plan(#[from] PlanError),
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
