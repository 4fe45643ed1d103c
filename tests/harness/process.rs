//! The real `drydock serve` as a process of its own, which can be killed without a word.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::{Child, Command};

use super::folder::Folder;
use super::world::PATIENCE;

const VERSION: &str = "2026-07-28";

pub struct Gateway {
    child: Child,
    pub url: String,
    pub client: reqwest::Client,
}

impl Gateway {
    /// Starts a gateway on this state folder and returns when it answers. Its log goes to `gateway.log` there.
    pub async fn start(state: &Path, data: &Path) -> Self {
        Self::start_with(state, data, &[]).await
    }

    /// The same with more in its environment.
    pub async fn start_with(state: &Path, data: &Path, variables: &[(String, String)]) -> Self {
        let child = spawn(state, data, variables);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answers = async {
            loop {
                if let Some(address) = drydock::config::published(state) {
                    let url = format!("http://{address}");
                    if client.get(format!("{url}/healthz")).send().await.is_ok() {
                        return url;
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let Ok(url) = tokio::time::timeout(PATIENCE, answers).await else {
            panic!("no gateway answers; its log:\n{}", std::fs::read_to_string(state.join("gateway.log")).unwrap());
        };
        Self { child, url, client }
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("the gateway is alive")
    }

    /// `kill -9`: no goodbye.
    pub async fn kill(mut self) {
        self.child.start_kill().unwrap();
        self.child.wait().await.unwrap();
    }

    /// Returns when the process has ended by itself.
    pub async fn until_dead(mut self) {
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("the gateway does not die").unwrap();
    }

    /// SIGTERM, and returns how long the process took to leave.
    pub async fn stop(mut self) -> Duration {
        let began = std::time::Instant::now();
        let pid = rustix::process::Pid::from_raw(self.child.id().unwrap() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let left = tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("the gateway does not stop").unwrap();
        assert!(left.success(), "{left}");
        began.elapsed()
    }

    pub async fn get(&self, path: &str) -> Value {
        self.client.get(format!("{}{path}", self.url)).send().await.unwrap().json().await.unwrap()
    }

    pub async fn post(&self, path: &str, body: Value) -> Value {
        self.client.post(format!("{}{path}", self.url)).json(&body).send().await.unwrap().json().await.unwrap()
    }

    /// Calls a tool over MCP and returns its whole result.
    pub async fn call(&self, tool: &str, arguments: Value) -> Value {
        self.rpc("tools/call", json!({"name": tool, "arguments": arguments})).await
    }

    /// One request of revision 2026-07-28, which is stateless.
    async fn rpc(&self, method: &str, mut params: Value) -> Value {
        params["_meta"] = json!({
            "io.modelcontextprotocol/protocolVersion": VERSION,
            "io.modelcontextprotocol/clientInfo": {"name": "voyage", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {}
        });
        let mut request = self
            .client
            .post(format!("{}/mcp", self.url))
            .header("accept", "application/json, text/event-stream")
            .header("mcp-protocol-version", VERSION)
            .header("mcp-method", method);
        if let Some(name) = params["name"].as_str() {
            request = request.header("mcp-name", name);
        }
        let request = request.json(&json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}));
        let text = request.send().await.unwrap().text().await.unwrap();
        // A single JSON object, or an event stream whose last message is the answer.
        let json = text.lines().filter_map(|line| line.strip_prefix("data:")).rfind(|data| !data.trim().is_empty());
        let message: Value = serde_json::from_str(json.unwrap_or(&text)).unwrap_or_else(|_| panic!("{text}"));
        assert!(message["error"].is_null(), "{message}");
        message["result"].clone()
    }

    /// The structured content of a call that must succeed, and must have the shape that the tool promises.
    pub async fn ask(&self, tool: &str, arguments: Value) -> Value {
        let result = self.call(tool, arguments).await;
        assert_ne!(result["isError"], json!(true), "{result:#}");
        let content = &result["structuredContent"];
        let tools = self.rpc("tools/list", json!({})).await;
        let schema = tools["tools"].as_array().unwrap().iter().find(|known| known["name"] == tool).unwrap();
        let schema = &schema["outputSchema"];
        assert_eq!(super::shape::lacking(schema, schema, content, tool), None, "{content:#}");
        content.clone()
    }

    /// Reads server-sent events of a job after number `after`, until `enough` says so or the stream ends.
    pub async fn events(&self, job: &str, after: i64, mut enough: impl FnMut(&Value) -> bool) -> Vec<Value> {
        let mut request = self.client.get(format!("{}/v1/jobs/{job}/events", self.url));
        if after > 0 {
            request = request.header("last-event-id", after.to_string());
        }
        let mut response = request.send().await.unwrap();
        let (mut text, mut events) = (String::new(), Vec::new());
        while let Ok(Some(bytes)) =
            tokio::time::timeout(PATIENCE, response.chunk()).await.expect("the stream is silent")
        {
            text.push_str(std::str::from_utf8(&bytes).unwrap());
            while let Some((event, rest)) = text.split_once("\n\n") {
                let data = event.lines().find_map(|line| line.strip_prefix("data:"));
                let done = event.lines().any(|line| line.trim() == "event: done" || line.trim() == "event:done");
                if let (Some(data), false) = (data, done) {
                    events.push(serde_json::from_str(data).unwrap());
                }
                text = rest.to_owned();
                if events.last().is_some_and(&mut enough) {
                    return events;
                }
            }
        }
        events
    }
}

/// Starts a gateway's process, and does not wait until it answers.
pub fn spawn(state: &Path, data: &Path, variables: &[(String, String)]) -> Child {
    std::fs::create_dir_all(state).unwrap();
    let log = std::fs::File::options().create(true).append(true).open(state.join("gateway.log")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_drydock"));
    command
        .env("DRYDOCK_CONFIG", "/dev/null")
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .arg("--state-dir")
        .arg(state)
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(data)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true);
    // A gateway that was killed has left its address behind; nobody may be listening there any more.
    let _ = std::fs::remove_file(state.join("address"));
    command.spawn().unwrap()
}

/// A folder for one test: data in it, a state folder beside it.
pub struct Folders {
    folder: Folder,
}

impl Folders {
    /// With the small model in `data/tiny`, and `rows` made-up rows in `data/rows.jsonl`.
    pub fn new(rows: usize) -> Self {
        let folder = Folder::new();
        super::model::write(&folder.data().join("tiny"));
        let lines: String = (0..rows)
            .map(|n| {
                let row = json!({"messages": [
                    {"role": "user", "content": format!("What is {n} and {n}?")},
                    {"role": "assistant", "content": format!("It is {}.", 2 * n)}
                ]});
                format!("{row}\n")
            })
            .collect();
        std::fs::write(folder.data().join("rows.jsonl"), lines).unwrap();
        Self { folder }
    }

    pub fn state(&self) -> PathBuf {
        self.folder.state()
    }

    pub fn data(&self) -> PathBuf {
        self.folder.data()
    }

    pub async fn gateway(&self) -> Gateway {
        Gateway::start(&self.state(), &self.data()).await
    }

    /// A gateway that knows the model `tiny` and the dataset `rows`.
    pub async fn stocked(&self) -> Gateway {
        self.stock(self.gateway().await).await
    }

    /// The same gateway when it knows them.
    pub async fn stock(&self, gateway: Gateway) -> Gateway {
        let model = gateway.post("/v1/models", json!({"source": self.data().join("tiny")})).await;
        assert_eq!(model["name"], "tiny", "{model:#}");
        let dataset = gateway.ask("load_dataset", json!({"source": self.data().join("rows.jsonl")})).await;
        assert_eq!(dataset["dataset"]["name"], "rows", "{dataset:#}");
        gateway
    }
}
