//! Requests that wait or run.

use std::collections::VecDeque;
use std::time::Instant;

use super::request::{Event, EventSink, Failure, Request};

/// A request, and the state of its choices.
pub(super) struct Job {
    id: u64,
    request: Request,
    sink: Box<dyn EventSink>,
    /// The next choice that gets a slot.
    next_choice: usize,
    n_finished: usize,
    is_over: bool,
}

impl Job {
    fn choices(&self) -> usize {
        self.request.choices()
    }

    /// Fails the request.
    fn fail(&mut self, failure: Failure) {
        self.sink.send(0, Event::Failed(failure));
        self.is_over = true;
    }
}

/// Jobs, in the order of their turns for slots.
#[derive(Default)]
pub(super) struct Jobs {
    jobs: VecDeque<Job>,
    next_id: u64,
}

impl Jobs {
    pub(super) fn push(&mut self, request: Request, sink: Box<dyn EventSink>) {
        self.jobs.push_back(Job {
            id: self.next_id,
            request,
            sink,
            next_choice: 0,
            n_finished: 0,
            is_over: false,
        });
        self.next_id += 1;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Returns job and choice that get the next free slot. Its job then waits behind the others.
    pub(super) fn next_choice(&mut self) -> Option<(u64, usize, &Request)> {
        let is_waiting = |job: &Job| !job.is_over && job.next_choice < job.choices();
        let at = self.jobs.iter().position(is_waiting)?;
        let mut job = self.jobs.remove(at)?;
        let choice = job.next_choice;
        job.next_choice += 1;
        self.jobs.push_back(job);
        let job = self.jobs.back()?;
        Some((job.id, choice, &job.request))
    }

    /// Sends events of a choice. Returns false if the job is over, after which its other sequences must end.
    pub(super) fn send(&mut self, id: u64, choice: usize, events: Vec<Event>) -> bool {
        let Some(job) = self.jobs.iter_mut().find(|job| job.id == id) else {
            return false;
        };
        for event in events {
            let is_last = matches!(event, Event::Finished { .. });
            job.n_finished += usize::from(is_last);
            job.is_over |= !job.sink.send(choice, event);
        }
        job.is_over |= job.n_finished == job.choices();
        !job.is_over
    }

    pub(super) fn fail(&mut self, id: u64, failure: Failure) {
        if let Some(job) = self
            .jobs
            .iter_mut()
            .find(|job| job.id == id && !job.is_over)
        {
            job.fail(failure);
        }
    }

    /// Fails all jobs.
    pub(super) fn fail_all(&mut self, failure: &Failure) {
        for job in self.jobs.iter_mut().filter(|job| !job.is_over) {
            job.fail(failure.clone());
        }
    }

    /// Ends jobs whose deadline has passed or whose receiver is gone, and removes all that are over. Returns the number
    /// of those that were removed, and of those among them without a receiver.
    pub(super) fn remove_ended(&mut self, now: Instant) -> [usize; 2] {
        let mut cancelled = 0;
        for job in self.jobs.iter_mut().filter(|job| !job.is_over) {
            if job.sink.is_closed() {
                job.is_over = true;
                cancelled += 1;
            } else if job.request.deadline.is_some_and(|deadline| deadline <= now) {
                job.fail(Failure::TimedOut);
            }
        }
        let before = self.jobs.len();
        self.jobs.retain(|job| !job.is_over);
        [before - self.jobs.len(), cancelled]
    }

    /// True if a job still runs.
    pub(super) fn contains(&self, id: u64) -> bool {
        self.jobs.iter().any(|job| job.id == id)
    }
}
