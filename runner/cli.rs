//! The command line. It speaks to the gateway over REST like any other client; only `serve` and `stdio` are one.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use drydock_spec::{EvaluateArgs, FinetuneArgs, QuantizeArgs, TrainArgs};

use crate::config::{Config, Flag, Loaded, Sources, load};
use client::Client;
use error::{CliError, Exit};
use out::Out;

mod artifacts;
mod client;
mod config;
mod datasets;
mod describe;
mod doctor;
mod error;
mod explain;
mod failures;
mod flags;
mod follow;
mod gc;
mod gpus;
mod jobs;
mod knowledge;
mod logs;
mod models;
mod out;
mod remedies;
mod serve;
mod submit;
mod text;
mod upload;
mod watch;

const EXIT_CODES: &str = "\
Exit codes:
  0    done; for `watch`, and what is submitted with --watch: the job succeeded
  1    an error, said on stderr
  2    wrong usage
  3    the job failed
  4    the job was cancelled
  5    the gateway cannot be reached
  130  interrupted; a job goes on without its watcher";

/// Trains, finetunes, quantizes and evaluates models in sealed containers.
#[derive(Debug, Parser)]
#[command(name = "drydock", version, after_help = EXIT_CODES, max_term_width = 120)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command understands.
#[derive(Debug, clap::Args)]
struct Global {
    /// Configuration file [default: $DRYDOCK_CONFIG, else ~/.config/drydock/config.toml if there is one]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    config: Option<PathBuf>,
    /// Folder of the gateway's data
    #[arg(long, global = true, value_name = "FOLDER", help_heading = "Global options")]
    state_dir: Option<PathBuf>,
    /// Address of the gateway [default: the one that the configuration says]
    #[arg(long, global = true, value_name = "URL", env = "DRYDOCK_URL", help_heading = "Global options")]
    gateway: Option<String>,
    /// Machine-readable output on stdout: one JSON document, or a JSON object a line where it is a stream
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway: MCP at /mcp, REST and SSE under /v1
    Serve(serve::Settings),
    /// Speak MCP over stdin and stdout, through the gateway; one is started if none answers
    Stdio(serve::Settings),
    /// Finetune a model on a dataset
    Finetune(Box<submit::Submit<FinetuneArgs>>),
    /// Train a model from nothing on a dataset
    Train(Box<submit::Submit<TrainArgs>>),
    /// Quantize a model into a GGUF file
    Quantize(Box<submit::Submit<QuantizeArgs>>),
    /// Measure how good models are, side by side
    Evaluate(Box<submit::Submit<EvaluateArgs>>),
    /// List jobs, newest first
    #[command(visible_alias = "list")]
    Jobs(jobs::List),
    /// Show how a job stands, or how it ended
    #[command(visible_alias = "get")]
    Show(jobs::One),
    /// Follow a job to its end
    Watch(jobs::One),
    /// Print a job's log
    Logs(logs::Logs),
    /// Ask for a job's end
    Cancel(jobs::One),
    /// Say why a job failed, how often that was seen, and what is different from a job that went well
    Explain(explain::Explain),
    /// List what helps against a job's failure, the surest first
    Remedies(remedies::Remedies),
    /// Submit a failed job again with a remedy worked in
    Apply(remedies::Apply),
    /// List, add or take back remedies that people advise
    Remedy(remedies::Advice),
    /// List what has failed, those that are the same together, each with what helps best
    Failures(failures::Failures),
    /// Hand on what was learnt about failures, or take over what others have learnt
    Knowledge(knowledge::Knowledge),
    /// List, add or remove models
    Models(models::Models),
    /// List, add or remove datasets
    Datasets(datasets::Datasets),
    /// List what a job has made, or download it
    Artifacts(artifacts::Artifacts),
    /// List the host's GPUs, or say which of them no job gets
    Gpus(gpus::Gpus),
    /// Remove what has had its time: artifacts and reports of ended jobs, files that nothing needs
    Gc(gc::Gc),
    /// Print the configuration in force, and where each value comes from
    Config(serve::Settings),
    /// Check this host and say how to mend what is wrong
    Doctor(serve::Settings),
    /// Print the completion script of a shell
    Completions {
        /// bash, elvish, fish, powershell or zsh
        shell: clap_complete::Shell,
    },
}

/// Parses the process's arguments, does what they say, and says how it went.
pub async fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = Out::of_process(cli.global.json);
    let exit = match cli.run(&mut out).await {
        Ok(exit) => exit,
        Err(error) => {
            out.failed(&error);
            error.exit()
        }
    };
    exit.into()
}

impl Cli {
    async fn run(self, out: &mut Out) -> Result<Exit, CliError> {
        let global = self.global;
        match self.command {
            Command::Serve(settings) => serve::serve(global.load(settings.flags())?.config).await,
            Command::Stdio(settings) => serve::stdio(global.load(settings.flags())?.config, global.named()).await,
            Command::Config(settings) => config::print(&global.load(settings.flags())?, out),
            Command::Doctor(settings) => doctor::doctor(&global, settings.flags(), out).await,
            Command::Completions { shell } => completions(shell, out),
            Command::Finetune(job) => job.submit(&global.client()?, out).await,
            Command::Train(job) => job.submit(&global.client()?, out).await,
            Command::Quantize(job) => job.submit(&global.client()?, out).await,
            Command::Evaluate(job) => job.submit(&global.client()?, out).await,
            Command::Jobs(list) => list.print(&global.client()?, out).await,
            Command::Show(job) => job.show(&global.client()?, out).await,
            Command::Watch(job) => job.watch(&global.client()?, out).await,
            Command::Logs(logs) => logs.print(&global.client()?, out).await,
            Command::Cancel(job) => job.cancel(&global.client()?, out).await,
            Command::Explain(job) => job.print(&global.client()?, out).await,
            Command::Remedies(job) => job.print(&global.client()?, out).await,
            Command::Apply(apply) => apply.apply(&global.client()?, out).await,
            Command::Remedy(advice) => advice.run(&global.client()?, out).await,
            Command::Failures(failures) => failures.print(&global.client()?, out).await,
            Command::Knowledge(knowledge) => knowledge.run(&global.client()?, out).await,
            Command::Models(models) => models.run(&global.client()?, out).await,
            Command::Datasets(datasets) => datasets.run(&global.client()?, out).await,
            Command::Gpus(gpus) => gpus.run(&global.client()?, out).await,
            Command::Gc(gc) => gc.run(&global.client()?, out).await,
            Command::Artifacts(artifacts) => artifacts.run(&global.client()?, out).await,
        }
    }
}

impl Global {
    fn load(&self, mut flags: Vec<Flag>) -> Result<Loaded, CliError> {
        if let Some(folder) = &self.state_dir {
            flags.push(serve::text_flag("--state-dir", "state_dir", &folder.display().to_string()));
        }
        Ok(load(&Sources::of_process(self.config.clone(), flags))?)
    }

    /// The gateway that was named; an empty variable names none.
    fn named(&self) -> Option<&str> {
        self.gateway.as_deref().filter(|url| !url.is_empty())
    }

    fn client(&self) -> Result<Client, CliError> {
        match self.named() {
            Some(url) => Client::new(url),
            None => Client::new(&gateway_url(&self.load(Vec::new())?.config)),
        }
    }
}

/// Where the gateway of this configuration is: as it says itself, otherwise as it is configured.
fn gateway_url(config: &Config) -> String {
    let mut address = crate::config::published(&config.state_dir).unwrap_or(config.gateway.listen);
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    format!("http://{address}")
}

fn completions(shell: clap_complete::Shell, out: &mut Out) -> Result<Exit, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "drydock", &mut script);
    out.raw(&script)?;
    Ok(Exit::Ok)
}
