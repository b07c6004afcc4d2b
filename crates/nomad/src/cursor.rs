//! How far a list that Nomad gives out in pages was read.

use crate::client::{Answer, Call};
use crate::error::Error;

#[derive(Debug, Default)]
pub(crate) enum Cursor {
    #[default]
    First,
    /// Nomad's token, which is opaque but where a contract's case says what it is made of (jobs: `NAMESPACE.ID`).
    Next(String),
    End,
}

impl Cursor {
    /// The call for the next page; `None` after the last.
    pub(crate) fn ask(&self, call: Call) -> Option<Call> {
        match self {
            Cursor::First => Some(call),
            Cursor::Next(token) => Some(call.query("next_token", token.as_str())),
            Cursor::End => None,
        }
    }

    /// Past a page that was read; the header alone says whether there are more. Until then the same page can be asked for again.
    pub(crate) fn advance(&mut self, answer: &Answer) -> Result<(), Error> {
        *self = match (answer.header("X-Nomad-Nexttoken"), &*self) {
            (None | Some(""), _) => Cursor::End,
            (Some(token), Cursor::Next(before)) if before == token => {
                return Err(answer.unlike_nomad("its list does not advance"));
            }
            (Some(token), _) => Cursor::Next(token.to_owned()),
        };
        Ok(())
    }
}
