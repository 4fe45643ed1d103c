//! Experience with failures, out of one house and into another, over HTTP.

use drydock::plan::{DatasetInput, ModelInput, ModelSource, ResolvedInputs};
use drydock::remedy::{Chooser, Source};
use drydock::store::{Against, Holder, Job, NewAdvice, NewTrial, RemedyOf, Store};
use drydock_spec::{Failure, FailureKind, FinetuneArgs, JobArgs, Outcome, Owner, Remedy, Stage};
use proptest::prelude::*;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::house::{House, answer, open, queue};

const MEDIA_TYPE: &str = "application/x-ndjson";

/// Whose a job is, and what it is about.
#[derive(Debug, Clone)]
struct About {
    owner: String,
    model: String,
    dataset: String,
}

impl Default for About {
    fn default() -> Self {
        Self { owner: "local".into(), model: "tiny".into(), dataset: "squad".into() }
    }
}

/// A job that has ended so, perhaps as a trial of a remedy.
async fn ended(store: &Store, about: &About, learning_rate: f64, trial: Option<RemedyOf>, outcome: Outcome) -> Job {
    let About { owner, model, dataset } = about.clone();
    let job = queue(store, |new| {
        let args = FinetuneArgs {
            model: model.clone(),
            dataset: dataset.clone(),
            learning_rate: Some(learning_rate),
            ..FinetuneArgs::default()
        };
        new.owner = Owner(owner);
        new.spec = JobArgs::Finetune(args).parse().unwrap();
        new.inputs = ResolvedInputs {
            model: Some(ModelInput { name: model, source: ModelSource::Stored { digest: "m".into() }, adapter: None }),
            dataset: Some(DatasetInput { name: dataset, digest: "d".into() }),
            ..ResolvedInputs::default()
        };
        new.remedy = trial;
    })
    .await;
    let holder = Holder { name: "test".into(), lease_ms: 60_000 };
    let lease = store.claim(job.id, &holder).await.unwrap().unwrap();
    Box::pin(lease.finish(outcome, &[], 0)).await.unwrap();
    job
}

fn failed(message: &str) -> Outcome {
    Outcome::Failed(Failure::new(FailureKind::BadDataset, message).at(Stage::Tokenize))
}

/// A job that failed so, another one that did better with a remedy, and a third in which somebody changed something.
async fn experience(store: &Store, about: &About, message: &str, remedy: &str) {
    let job = ended(store, about, 1e-2, None, failed(message)).await;
    let of_failure = store.newest_failure(job.id).await.unwrap().unwrap().number;
    let remedy: Remedy = remedy.parse().unwrap();
    let trial = NewTrial { of_failure, remedy, source: Source::Asked, chosen_by: Chooser::Caller };
    let trial = RemedyOf { job: job.id, resumes: false, trial };
    ended(store, about, 1e-2, Some(trial), Outcome::Succeeded).await;
    ended(store, about, 1e-2, None, failed(message)).await;
    ended(store, about, 1e-3, None, Outcome::Succeeded).await;
}

async fn export(house: &House, query: &str) -> String {
    let response = house.ask(Method::GET, &format!("/v1/knowledge{query}")).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], MEDIA_TYPE);
    response.text().await.unwrap()
}

async fn import(house: &House, file: String) -> (StatusCode, Value) {
    answer(house.ask(Method::POST, "/v1/knowledge").header("content-type", MEDIA_TYPE).body(file)).await
}

fn lines(file: &str) -> Vec<Value> {
    file.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn what_was_learnt_in_one_house_is_advice_in_another() {
    let (here, there) = (open().await, open().await);
    experience(&here.store, &About::default(), "row 3 of `squad`: no field `answer`", "try again").await;
    let advice = json!({"against": {"kind": "access_denied"}, "remedy": "outside: get_access", "note": "ask for it"});
    assert_eq!(answer(here.ask(Method::POST, "/v1/remedies").json(&advice)).await.0, StatusCode::CREATED);
    let file = export(&here, "?name=team-a&notes=true").await;
    let told = lines(&file);
    let installation = told[0]["installation"].as_str().unwrap().to_owned();
    assert_eq!((told[0]["name"].as_str(), told[0]["version"].as_u64()), (Some("team-a"), Some(1)));
    let failure = &told[1]["failure"];
    assert_eq!(failure["template"], "row <number> of <quoted>: no field <quoted>");
    assert_eq!(
        (&failure["kind"], &failure["stage"], &failure["count"]),
        (&json!("bad_dataset"), &json!("tokenize"), &json!(2))
    );
    let remedies: Vec<_> = told[2..]
        .iter()
        .map(|line| {
            let one = &line["remedy"];
            (
                one["remedy"].as_str().unwrap(),
                one["source"].as_str().unwrap(),
                one["worked"].clone(),
                one["tried"].clone(),
            )
        })
        .collect();
    assert_eq!(
        remedies,
        [
            ("try again", "asked", json!(1), json!(1)),
            ("learning_rate * 0.1", "history", json!(1), json!(1)),
            ("outside: get_access", "person", json!(0), json!(0)),
        ]
    );

    let (status, imported) = import(&there, file.clone()).await;
    let origin = format!("team-a ({installation})");
    assert_eq!(
        (status, &imported),
        (StatusCode::OK, &json!({"origin": origin, "added": 3, "changed": 0, "unchanged": 0, "failures": 1}))
    );
    let (_, again) = import(&there, file.clone()).await;
    assert_eq!(again, json!({"origin": origin, "added": 0, "changed": 0, "unchanged": 3, "failures": 1}));
    let before = there.store.all_advice().await.unwrap();

    // It waits for the day on which the failure is seen here, and is told with where it comes from.
    let job = ended(&there.store, &About::default(), 1e-2, None, failed("row 8 of `faq`: no field `reply`")).await;
    let (_, told) = there.get(&format!("/v1/jobs/{}/failure", job.id)).await;
    assert_eq!(told["seen_elsewhere"], json!([{"installation": origin, "count": 2}]));
    let offered = told["remedies"].as_array().unwrap().iter().find(|one| one["remedy"] == "try again").unwrap();
    assert_eq!(offered["source"], json!({"from": "installation", "name": origin, "worked": 1, "tried": 1}));
    assert_eq!(offered["record"]["here"]["tried"], 0, "another house's record is not this one's");

    // Under another name it is still the same house, and what it has learnt since takes the place of what it knew.
    experience(&here.store, &About::default(), "row 1 of `squad`: no field `answer`", "try again").await;
    let (_, newer) = import(&there, export(&here, "?name=team-b&notes=true").await).await;
    assert_eq!((&newer["added"], &newer["changed"]), (&json!(0), &json!(2)), "{newer}");
    let after = there.store.all_advice().await.unwrap();
    assert_eq!(after.len(), before.len());
    assert!(after.iter().all(|one| one.advice.origin.as_ref().unwrap().0 == format!("team-b ({installation})")));
    // What came from there is not handed on as one's own.
    assert!(!export(&there, "?notes=true").await.contains("get_access"));
}

#[tokio::test]
async fn a_wrong_line_refuses_the_whole_file_and_ones_own_is_known() {
    let (here, there) = (open().await, open().await);
    experience(&here.store, &About::default(), "row 3: bad", "try again").await;
    let file = export(&here, "").await;
    let (status, refused) = import(&here, file.clone()).await;
    assert_eq!((status, &refused["error"]["code"]), (StatusCode::CONFLICT, &json!("own_knowledge")), "{refused}");
    let (status, refused) = import(&there, format!("{file}{{\"job\":1}}\n")).await;
    assert_eq!((status, &refused["error"]["code"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("not_knowledge")));
    assert!(refused["error"]["message"].as_str().unwrap().starts_with("line 5: unknown variant `job`"), "{refused}");
    assert_eq!(there.store.all_advice().await.unwrap(), []);
    let large = format!("{file}{}", " ".repeat(8 << 20));
    assert_eq!(import(&there, large).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    let as_text = there.ask(Method::POST, "/v1/knowledge").header("content-type", "text/plain").body(file);
    assert_eq!(answer(as_text).await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE, "a web page could send that");
    let (status, refused) = here.get("/v1/knowledge?name=%3Cb%3E").await;
    assert_eq!((status, &refused["error"]["code"]), (StatusCode::BAD_REQUEST, &json!("bad_name")));
}

/// What must not leave, each such that it could be found in what does.
fn secret() -> impl Strategy<Value = String> {
    prop_oneof![
        "hf_[A-Za-z]{24}",
        "sk-[a-z]{20}",
        "ghp_[A-Za-z0-9]{24}",
        "AKIA[A-Z]{16}",
        "eyJ[A-Za-z]{12}\\.[a-z]{12}\\.[a-z]{12}",
        "[a-z]{6,9}@[a-z]{6,9}\\.com",
        "10\\.[0-9]{2}\\.[0-9]{2}\\.[0-9]{2}",
        "[a-z]{6,9}\\.[a-z]{6,9}\\.com",
        "/[a-z]{6,9}/[a-z]{6,9}",
        "https://[a-z]{6,9}/[a-z]{6,9}",
        "01[0-9A-HJKMNP-TV-Z]{24}",
    ]
}

fn name() -> impl Strategy<Value = String> {
    "[a-z]{7,10}(-[a-z]{7,10})?"
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn no_secret_and_no_name_of_a_whole_database_leaves(
        secrets in prop::collection::vec(secret(), 6),
        owner in name(),
        model in name(),
        dataset in name(),
        person in "[A-Z][a-z]{7,9} [A-Z][a-z]{7,9}",
        password in "[a-z]{9,12}",
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (file, job) = runtime.block_on(async {
            let house = open().await;
            let about = About { owner: owner.clone(), model: model.clone(), dataset: dataset.clone() };
            let message = format!(
                "cannot read {} of {dataset} for {owner} with {model}: {} password={password} {}",
                secrets[0], secrets[1], secrets[2]
            );
            let remedy = format!("learning_rate * 0.5, sample_prompts = [{}]", Value::from(secrets[3].clone()));
            experience(&house.store, &about, &message, &remedy).await;
            experience(&house.store, &about, &message, &format!("model = {}", Value::from(model.clone()))).await;
            let advice = |remedy: &str, note: String| NewAdvice {
                against: Against::Kind(FailureKind::BadDataset),
                remedy: remedy.parse().unwrap(),
                note,
                by_whom: person.clone(),
                origin: None,
            };
            let note = format!("{person} says: use {} or {}; Bearer {password}, not {dataset}", secrets[4], secrets[5]);
            house.store.advise(&advice("try again", note)).await.unwrap();
            house.store.advise(&advice(&format!("dtype = {}", Value::from(secrets[4].clone())), String::new())).await.unwrap();
            let job = house.store.failure_groups(1).await.unwrap()[0].newest.job.to_string();
            (export(&house, "?notes=true").await, job)
        });
        let plants = secrets.iter().chain([&owner, &model, &dataset, &password, &job]).map(String::as_str);
        for plant in plants.chain(person.split(' ')) {
            prop_assert!(!file.to_lowercase().contains(&plant.to_lowercase()), "{plant} in {file}");
        }
        prop_assert!(lines(&file).len() >= 3, "what names nobody is there: {file}");
    }
}
