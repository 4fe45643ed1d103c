//! The chain that people ask for: finetune, quantize the result, measure base, adapter and quantized side by side. All
//! of it is submitted at once.

use super::*;

/// Submits a job with this tool, and returns its id.
async fn queue(gateway: &Gateway, tool: &str, arguments: Value) -> String {
    let submitted = gateway.ask(tool, arguments).await;
    submitted["job"]["id"].as_str().unwrap_or_else(|| panic!("{submitted:#}")).to_owned()
}

#[tokio::test]
async fn a_chain_submitted_at_once_ends_with_three_models_side_by_side() {
    let folders = Folders::new(60);
    let gateway = folders.stocked().await;
    let finetuned = queue(&gateway, "finetune", finetune(30)).await;
    let quantized = queue(
        &gateway,
        "quantize",
        json!({"model": format!("job:{finetuned}"), "quant_type": "Q4_K_M", "limits": {"cpus": 1}}),
    )
    .await;
    let evaluated = queue(
        &gateway,
        "evaluate",
        json!({
            "model": "tiny", "adapter": format!("job:{finetuned}"), "dataset": "rows", "measures": ["perplexity"],
            "compare_with": [{"model": format!("job:{quantized}")}], "limits": {"cpus": 1}
        }),
    )
    .await;
    let waiting = gateway.ask("get_job", json!({"id": evaluated})).await;
    assert_eq!(waiting["waits_for"]["reason"], "job", "{waiting:#}");

    let view = wait(&gateway, &evaluated).await;
    assert_eq!(view["state"], "succeeded", "{view:#}");
    let perplexity = |part: &str| {
        let scores = view["scores"].as_array().unwrap();
        let meant = |score: &&Value| {
            let metric = score["metric"].as_str().unwrap();
            metric.contains("perplexity") && !metric.ends_with("_difference") && score["model"] == part
        };
        scores.iter().find(meant).unwrap_or_else(|| panic!("{part}: {view:#}"))["value"].as_f64().unwrap()
    };
    let (base, adapter) = (perplexity("tiny"), perplexity(&format!("tiny + job:{finetuned}")));
    assert!(adapter < base, "perplexity {base} before, {adapter} after");
    let summary = view["summary"].as_str().unwrap();
    assert!(summary.contains(&format!("tiny + job:{finetuned} {adapter:.4} (better by ")), "{summary}");
    let smaller = gateway.ask("get_job", json!({"id": quantized})).await;
    assert_eq!(smaller["quantized"]["quant_type"], "Q4_K_M", "{smaller:#}");
    let made = gateway.ask("list_artifacts", json!({"id": quantized})).await;
    let paths: Vec<_> = made["artifacts"].as_array().unwrap().iter().map(|file| file["path"].clone()).collect();
    assert!(paths.iter().any(|path| path.as_str().unwrap().ends_with(".gguf")), "{paths:?}");
}
