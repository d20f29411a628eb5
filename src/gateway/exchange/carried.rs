//! What an exchange carries along while it is at a pool.

use std::task::{Context, Poll};

use bytes::Bytes;
use http::StatusCode;

use crate::admission::{EndSignal, Failure, Permit};
use crate::relay::{End, Load};

use super::Record;

/// What an exchange carries along while it is at a pool.
pub(in crate::gateway) struct Carried {
    /// Given back as soon as the engine has finished and its answer is judged.
    permit: Option<Permit>,
    end: Option<EndSignal>,
    pub(super) record: Box<Record>,
    judged: bool,
}

impl Carried {
    pub(super) fn new(mut permit: Permit, end: Option<EndSignal>, record: Box<Record>) -> Self {
        permit.sent();
        Self {
            permit: Some(permit),
            end,
            record,
            judged: false,
        }
    }

    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Whether it is ended by the process's own end.
    pub fn is_shutdown(&self) -> bool {
        self.permit.as_ref().is_some_and(Permit::is_shutdown)
    }

    /// The client is given an answer of this status.
    pub fn answers(&mut self, status: StatusCode) {
        self.record.answers(status);
    }

    /// What the client gets of it is cut short.
    pub fn cut(&mut self, code: &'static str) {
        self.record.cut(code);
        self.settle();
    }

    /// What the answer says of its pool is said.
    pub(super) fn judge(&mut self, say: impl FnOnce(&mut Permit)) {
        if let Some(permit) = &mut self.permit {
            say(permit);
        }
    }

    /// Nothing more is to be said of the pool.
    pub(super) fn settle(&mut self) {
        self.judged = true;
        if self.permit.as_ref().is_some_and(Permit::is_done) {
            self.permit = None;
        }
    }
}

impl Load for Carried {
    fn answering(&mut self) {
        if let Some(permit) = &mut self.permit {
            permit.answering();
        }
        self.record.began();
    }

    fn passing(&mut self, bytes: &Bytes) {
        self.record.passing(bytes);
    }

    fn done(&mut self, end: End) {
        self.record.done(end);
        if let Some(permit) = &mut self.permit {
            // One that breaks off in the middle is a failure like any other.
            if self.judged && end == End::Broken {
                permit.failed(Failure::Broken);
            } else {
                permit.done();
            }
        }
        if self.judged {
            self.permit = None;
        }
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.end {
            Some(end) => end.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}
