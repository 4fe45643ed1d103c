//! Bringing what a job reads into place, for attempts and for previews alike.

use drydock_spec::Failure;

use crate::datasets::Datasets;
use crate::models::Models;
use crate::plan::{self, ResolvedInputs};
use crate::sandbox::attempt_dir::{InputFolders, ModelFolders};

/// The folders with all of it; what is on the hub is fetched first. It may be cut off at any point: what was fetched
/// stays.
pub async fn bring(models: &Models, datasets: &Datasets, inputs: &ResolvedInputs) -> Result<InputFolders, Failure> {
    let mut folders = InputFolders::default();
    for (input, folder) in [(&inputs.dataset, &mut folders.dataset), (&inputs.eval_dataset, &mut folders.eval_dataset)]
    {
        *folder = input.as_ref().map(|input| datasets.folder(input)).transpose()?;
    }
    if let Some(model) = &inputs.model {
        folders.model = Some(model_folders(models, model).await?);
    }
    for model in &inputs.compared {
        folders.compared.push(model_folders(models, model).await?);
    }
    if let Some(model) = &inputs.tokenizer {
        folders.tokenizer = Some(models.ensure(model).await?);
    }
    Ok(folders)
}

async fn model_folders(models: &Models, input: &plan::ModelInput) -> Result<ModelFolders, Failure> {
    let adapter = match &input.adapter {
        Some(adapter) => Some(models.ensure_adapter(adapter).await?),
        None => None,
    };
    Ok(ModelFolders { name: input.name.clone(), model: models.ensure(input).await?, adapter })
}
