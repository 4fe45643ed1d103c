//! `drydock logs`

use super::client::Client;
use super::error::{CliError, Exit};
use super::follow::{Follow, News};
use super::jobs::Named;
use super::out::Out;
use super::{describe, watch};
use crate::api::{LogLineView, Logs as Page};

/// Which lines of which job.
#[derive(Debug, clap::Args)]
pub(super) struct Logs {
    #[command(flatten)]
    job: Named,
    /// Print new lines as they come, until the job ends
    #[arg(long, short)]
    follow: bool,
    /// Start after this line [default: the last lines; the first ones with --follow]
    #[arg(long, value_name = "SEQ")]
    after: Option<i64>,
    /// Lines at most
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
}

impl Logs {
    pub(super) async fn print(&self, client: &Client, out: &mut Out) -> Result<Exit, CliError> {
        let id = self.job.find(client).await?;
        if self.follow {
            return self.follow(client, id, out).await;
        }
        let mut query = vec![("limit", self.limit.to_string())];
        query.extend(self.after.map(|after| ("after", after.to_string())));
        let page: Page = client.get(&["v1", "jobs", &id.to_string(), "logs"], &query).await?;
        if out.json {
            out.document(&page)?;
            return Ok(Exit::Ok);
        }
        for line in &page.lines {
            out.line(text(line))?;
        }
        if let Some(words) = page.last_words {
            out.line("--- last words of the container (untrusted) ---")?;
            out.line(words.trim_end())?;
        }
        Ok(Exit::Ok)
    }

    async fn follow(&self, client: &Client, id: drydock_spec::JobId, out: &mut Out) -> Result<Exit, CliError> {
        let mut follow = Follow::new(client, id, self.after.unwrap_or(0));
        let mut interrupts = watch::interrupts()?;
        loop {
            let news = tokio::select! {
                news = follow.next() => news?,
                _ = interrupts.recv() => return Ok(watch::detached(id, out)),
            };
            match news {
                Some(News::Line(line)) if out.json => out.json_line(&line)?,
                Some(News::Line(line)) => out.line(text(&line))?,
                Some(News::Lost(reason)) => out.note(format!("connection lost ({reason}); trying again")),
                Some(News::Back) => out.note("connected again"),
                None => return Ok(Exit::Ok),
            }
        }
    }
}

/// The line with its number and its time of day in UTC.
fn text(line: &LogLineView) -> String {
    let second = line.at_ms.div_euclid(1000).rem_euclid(86_400);
    format!(
        "{:>5}  {:02}:{:02}:{:02}  {}",
        line.seq,
        second / 3600,
        second / 60 % 60,
        second % 60,
        describe::line(line)
    )
}
