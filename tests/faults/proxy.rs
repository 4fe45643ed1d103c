//! What stands between the gateway and the engine's socket, and does harm there: it works on bytes, so that it can do
//! what no library that speaks HTTP would.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

/// What is asked of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Info,
    Image,
    Create,
    Start,
    Inspect,
    Wait,
    Signal,
    Logs,
    List,
    Remove,
}

impl Call {
    pub(crate) const ALL: [Self; 10] = [
        Self::Info,
        Self::Image,
        Self::Create,
        Self::Start,
        Self::Inspect,
        Self::Wait,
        Self::Signal,
        Self::Logs,
        Self::List,
        Self::Remove,
    ];

    /// What a request asks for, by its first line.
    fn of(head: &str) -> Option<Self> {
        let mut words = head.split(' ');
        let (method, target) = (words.next()?, words.next()?);
        let path = target.split('?').next()?;
        Some(match (method, path.rsplit('/').next()?) {
            ("GET", "info") => Self::Info,
            ("POST", "create") => Self::Create,
            ("POST", "start") => Self::Start,
            ("POST", "wait") => Self::Wait,
            ("POST", "kill") => Self::Signal,
            ("GET", "logs") => Self::Logs,
            ("GET", "json") if path.starts_with("/images/") => Self::Image,
            ("GET", "json") if path == "/containers/json" => Self::List,
            ("GET", "json") => Self::Inspect,
            ("DELETE", _) => Self::Remove,
            _ => return None,
        })
    }
}

/// What is done to a request or its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The engine hears of it late.
    Late(Duration),
    /// The engine never hears of it, and there is no answer.
    LostRequest,
    /// The engine does it, and there is no answer.
    LostAnswer,
    /// The engine is told twice; the second answer counts.
    Twice,
    /// The engine never hears of it, and the answer is that something went wrong.
    FailedBefore,
    /// The engine does it, and the answer is that something went wrong.
    FailedAfter,
    /// The engine does it, and the answer is no HTTP.
    Noise,
    /// The engine never hears of it, and the answer is a page of a program that means well.
    Page,
    /// The engine does it, and the answer breaks off in the middle.
    Half,
    /// The engine never hears of it, and the connection stays open.
    Silence,
}

impl Fault {
    /// All that take no longer than it takes to ask again.
    pub(crate) const QUICK: [Self; 9] = [
        Self::Late(Duration::from_millis(300)),
        Self::LostRequest,
        Self::LostAnswer,
        Self::Twice,
        Self::FailedBefore,
        Self::FailedAfter,
        Self::Noise,
        Self::Page,
        Self::Half,
    ];
}

/// The next `times` calls of a kind are harmed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Harm {
    pub(crate) call: Call,
    pub(crate) fault: Fault,
    pub(crate) times: u32,
    /// How often it was done already.
    pub(crate) done: u32,
}

impl Harm {
    pub(crate) fn new(call: Call, fault: Fault, times: u32) -> Self {
        Self { call, fault, times, done: 0 }
    }
}

/// Ends with the test's runtime.
pub(crate) struct Proxy {
    folder: tempfile::TempDir,
    harms: Arc<Mutex<Vec<Harm>>>,
}

impl Proxy {
    /// Before the engine at this socket.
    pub(crate) fn before(engine: PathBuf) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let harms: Arc<Mutex<Vec<Harm>>> = Arc::default();
        let listener = UnixListener::bind(folder.path().join("engine.sock")).unwrap();
        let shared = Arc::clone(&harms);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (engine, harms) = (engine.clone(), Arc::clone(&shared));
                // A connection that breaks is what this is for.
                tokio::spawn(async move { pass(client, &engine, &harms).await });
            }
        });
        Self { folder, harms }
    }

    /// Where it listens, as Docker's clients write it.
    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.folder.path().join("engine.sock").display())
    }

    pub(crate) fn harm(&self, harms: impl IntoIterator<Item = Harm>) {
        self.harms.lock().unwrap().extend(harms);
    }

    /// The harm that was never done.
    pub(crate) fn undone(&self) -> Vec<Harm> {
        self.harms.lock().unwrap().iter().filter(|harm| harm.done == 0).copied().collect()
    }
}

/// Takes one request to the engine and its answer back, or does it some harm.
async fn pass(mut client: UnixStream, engine: &Path, harms: &Mutex<Vec<Harm>>) -> std::io::Result<()> {
    let Some(request) = request(&mut client).await? else { return Ok(()) };
    let head = String::from_utf8_lossy(&request).lines().next().unwrap_or_default().to_owned();
    match Call::of(&head).and_then(|call| next_fault(harms, call)) {
        None => {
            let mut engine = asked(engine, &request).await?;
            answer(&mut client, &mut engine).await
        }
        Some(Fault::Late(by)) => {
            tokio::time::sleep(by).await;
            let mut engine = asked(engine, &request).await?;
            answer(&mut client, &mut engine).await
        }
        Some(Fault::LostRequest) => Ok(()),
        Some(Fault::LostAnswer) => answered(engine, &request).await.map(drop),
        Some(Fault::Twice) => {
            answered(engine, &request).await?;
            client.write_all(&answered(engine, &request).await?).await
        }
        Some(Fault::FailedBefore) => client.write_all(&failed()).await,
        Some(Fault::FailedAfter) => {
            answered(engine, &request).await?;
            client.write_all(&failed()).await
        }
        Some(Fault::Noise) => {
            answered(engine, &request).await?;
            client.write_all(b"\x00\xff\x13\x37 what?\n\n").await
        }
        Some(Fault::Page) => {
            client.write_all(&whole("200 OK", "text/html", "<html>Welcome to your new proxy!</html>")).await
        }
        Some(Fault::Half) => {
            let answer = answered(engine, &request).await?;
            client.write_all(&answer[..answer.len() / 2]).await
        }
        Some(Fault::Silence) => client.read(&mut [0]).await.map(drop),
    }
}

fn next_fault(harms: &Mutex<Vec<Harm>>, call: Call) -> Option<Fault> {
    let mut harms = harms.lock().unwrap();
    let harm = harms.iter_mut().find(|harm| harm.call == call && harm.done < harm.times)?;
    harm.done += 1;
    Some(harm.fault)
}

/// One whole request, changed so that its connection serves no other. `None` if the client has thought better of it.
async fn request(client: &mut UnixStream) -> std::io::Result<Option<Vec<u8>>> {
    const END: &[u8] = b"\r\n\r\n";
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(at) = bytes.windows(END.len()).position(|window| window == END) {
            break at + END.len();
        }
        if client.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    };
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok()).unwrap_or(0);
    while bytes.len() < head + length {
        if client.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    }
    let first_line = bytes.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    bytes.splice(first_line..first_line, *b"Connection: close\r\n");
    Ok(Some(bytes))
}

/// The engine, when it has been told.
async fn asked(engine: &Path, request: &[u8]) -> std::io::Result<UnixStream> {
    let mut engine = UnixStream::connect(engine).await?;
    engine.write_all(request).await?;
    Ok(engine)
}

/// Hands on what the engine says until one of the two has had enough.
async fn answer(client: &mut UnixStream, engine: &mut UnixStream) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = client.split();
    let mut nothing = [0];
    tokio::select! {
        copied = tokio::io::copy(engine, &mut to_client) => copied.map(drop),
        gone = from_client.read(&mut nothing) => gone.map(drop),
    }
}

/// All that the engine says.
async fn answered(engine: &Path, request: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    asked(engine, request).await?.read_to_end(&mut answer).await?;
    Ok(answer)
}

fn failed() -> Vec<u8> {
    whole("500 Internal Server Error", "application/json", r#"{"message":"something went wrong"}"#)
}

fn whole(status: &str, media: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Type: {media}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
        .into_bytes()
}
