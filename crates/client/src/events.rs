//! An operation as it goes, from the controller's server-sent events.

use std::collections::VecDeque;
use std::time::Duration;

use curfew_core::OpId;
use curfew_core::api::{OperationView, Problem};
use curfew_core::audit::AuditRow;
use reqwest::Method;

use crate::{Client, Error};

/// What a stream tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A row of its trail.
    Row(Box<AuditRow>),
    /// It has finished; nothing comes after it.
    Finished(Box<OperationView>),
}

/// The events of one operation. Goes on where it was when a stream ends or a controller goes away, also on another one.
pub struct Events {
    client: Client,
    id: OpId,
    /// The `seq` of the last row that was told.
    after: u64,
    open: Option<Open>,
    over: bool,
}

struct Open {
    response: reqwest::Response,
    text: Vec<u8>,
    ready: VecDeque<Event>,
}

/// The controller sends a comment every 15 s; a stream that is silent for longer is dead.
const SILENT: Duration = Duration::from_secs(45);
/// A line of a stream that is longer is none of Curfew's.
const LONGEST_LINE: usize = 64 << 20;

impl Events {
    pub(crate) fn new(client: Client, id: OpId, after: u64) -> Self {
        Self { client, id, after, open: None, over: false }
    }

    /// The next one; `None` after the end. An error is transient or not ([`Error::is_transient`]); asking again goes on.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if self.over {
                return Ok(None);
            }
            let open = match &mut self.open {
                Some(open) => open,
                None => {
                    let opened = self.open().await?;
                    self.open.insert(opened)
                }
            };
            if let Some(event) = open.ready.pop_front() {
                match &event {
                    Event::Row(row) => self.after = row.seq,
                    Event::Finished(_) => self.over = true,
                }
                return Ok(Some(event));
            }
            match tokio::time::timeout(SILENT, open.response.chunk()).await {
                Ok(Ok(Some(chunk))) => open.take(&chunk, self.client.addr())?,
                // It ended, or broke: the next one goes on after the last row.
                _ => self.open = None,
            }
        }
    }

    async fn open(&self) -> Result<Open, Error> {
        let addr = self.client.addr().to_owned();
        let request = self.client.remote().request(&addr, Method::GET, &format!("/v1/operations/{}/events", self.id))?;
        let sent = tokio::time::timeout(SILENT, request.header("Last-Event-ID", self.after).send()).await;
        let response = match sent {
            Ok(Ok(response)) => response,
            Ok(Err(source)) => {
                self.client.remote().leave(&addr);
                return Err(Error::of(addr, source));
            }
            Err(_) => {
                self.client.remote().leave(&addr);
                return Err(Error::Silent { addr });
            }
        };
        if response.status().is_success() {
            return Ok(Open { response, text: Vec::new(), ready: VecDeque::new() });
        }
        let status = response.status();
        if status.as_u16() == 503 {
            self.client.remote().leave(&addr);
        }
        match response.json::<Problem>().await {
            Ok(problem) => Err(Error::Refused(problem)),
            Err(_) => Err(Error::NotCurfew { addr, what: format!("status {status}") }),
        }
    }
}

impl Open {
    fn take(&mut self, chunk: &[u8], addr: &str) -> Result<(), Error> {
        self.text.extend_from_slice(chunk);
        let not_curfew = |what: String| Error::NotCurfew { addr: addr.to_owned(), what };
        while let Some(end) = self.text.windows(2).position(|w| w == b"\n\n") {
            let block: Vec<u8> = self.text.drain(..end + 2).collect();
            let block = String::from_utf8(block).map_err(|e| not_curfew(e.to_string()))?;
            self.ready.extend(read(&block).map_err(|e| not_curfew(e.to_string()))?);
        }
        if self.text.len() > LONGEST_LINE { Err(not_curfew("an event without an end".into())) } else { Ok(()) }
    }
}

fn read(block: &str) -> serde_json::Result<Option<Event>> {
    let field = |name: &str| {
        let lines =
            block.lines().filter_map(|l| l.strip_prefix(name)?.strip_prefix(':')).map(|v| v.strip_prefix(' ').unwrap_or(v));
        lines.collect::<Vec<_>>().join("\n")
    };
    let data = field("data");
    Ok(match (data.as_str(), field("event").as_str()) {
        // A comment: the controller is there.
        ("", _) => None,
        (data, "operation") => Some(Event::Finished(serde_json::from_str(data)?)),
        (data, _) => Some(Event::Row(serde_json::from_str(data)?)),
    })
}
