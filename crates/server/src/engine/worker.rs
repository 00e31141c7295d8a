//! The loop of the engine.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::TryRecvError;
use std::time::Instant;

use hybridnorm::Error;
use hybridnorm::model::SlotTokens;
use rayon::prelude::*;

use super::jobs::Jobs;
use super::request::{Event, Failure};
use super::sequence::Sequence;
use super::{Engine, Message};

/// State of the loop.
pub(super) struct Worker {
    engine: Engine,
    jobs: Jobs,
    sequences: Vec<Sequence>,
    free_slots: Vec<usize>,
    is_stopping: bool,
}

impl Worker {
    pub(super) fn new(engine: Engine) -> Self {
        let slots = engine.cache.slots();
        Self {
            engine,
            jobs: Jobs::default(),
            sequences: Vec::with_capacity(slots),
            free_slots: (0..slots).rev().collect(),
            is_stopping: false,
        }
    }

    /// Runs until the engine is stopped.
    pub(super) fn run(mut self) {
        while self.receive() {
            self.remove_ended();
            self.admit();
            self.prefill();
            self.step();
            self.remove_ended();
        }
        self.jobs.fail_all(&Failure::Stopped);
        self.remove_ended();
    }

    /// Takes new requests, and waits for one if there is nothing else to do. Returns false if the engine stops.
    fn receive(&mut self) -> bool {
        if self.jobs.is_empty() && !self.is_stopping {
            match self.engine.receiver.recv() {
                Ok(message) => self.take(message),
                Err(_) => return false,
            }
        }
        loop {
            match self.engine.receiver.try_recv() {
                Ok(message) => self.take(message),
                Err(TryRecvError::Empty) => return !self.is_stopping,
                // Requests that were accepted are completed.
                Err(TryRecvError::Disconnected) => {
                    return !self.is_stopping && !self.jobs.is_empty();
                }
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Request(request, sink) => self.jobs.push(request, sink),
            Message::Stop => self.is_stopping = true,
        }
    }

    /// Removes jobs that are over, and frees the slots of their sequences.
    fn remove_ended(&mut self) {
        let [removed, cancelled] = self.jobs.remove_ended(Instant::now());
        let counters = &self.engine.counters;
        counters.requests.fetch_sub(removed, Relaxed);
        counters.cancelled.fetch_add(cancelled, Relaxed);
        if removed > 0 {
            let jobs = &self.jobs;
            let over: Vec<usize> = self
                .sequences
                .iter()
                .filter(|sequence| !jobs.contains(sequence.job))
                .map(|sequence| sequence.slot)
                .collect();
            over.into_iter().for_each(|slot| self.free(slot));
        }
    }

    /// Ends the sequence in a slot.
    fn free(&mut self, slot: usize) {
        self.sequences.retain(|sequence| sequence.slot != slot);
        self.engine.cache.clear(slot);
        self.free_slots.push(slot);
        self.engine
            .counters
            .active
            .store(self.sequences.len(), Relaxed);
    }

    /// Gives free slots to waiting choices.
    fn admit(&mut self) {
        while let Some(&slot) = self.free_slots.last() {
            let Some((job, choice, request)) = self.jobs.next_choice() else {
                break;
            };
            match Sequence::new(job, choice, slot, request, &self.engine.tokenizer) {
                Ok(sequence) => {
                    self.free_slots.pop();
                    self.sequences.push(sequence);
                }
                Err(error) => self.jobs.fail(job, Failure::Model(error.to_string())),
            }
        }
        self.engine
            .counters
            .active
            .store(self.sequences.len(), Relaxed);
    }

    /// Evaluates prompts, one sequence per run: chunks with at most as many tokens as the longest one.
    fn prefill(&mut self) {
        let chunk = self.engine.prefill_chunk;
        let mut budget = chunk;
        while let Some(at) = self.sequences.iter().position(Sequence::is_prefilling) {
            // The length of a chunk depends only on its prompt; one that does not fit waits.
            if self.sequences[at].next_run(chunk).ids.len() > budget {
                break;
            }
            budget -= self.prefill_chunk(at);
        }
    }

    /// Evaluates the next chunk of the prompt of a sequence; returns its length. Chunks of a prompt do not depend on
    /// other sequences.
    fn prefill_chunk(&mut self, at: usize) -> usize {
        let engine = &mut self.engine;
        let sequence = &mut self.sequences[at];
        let run = sequence.next_run(engine.prefill_chunk);
        let len = run.ids.len();
        let tokens = [SlotTokens {
            slot: sequence.slot,
            ids: run.ids,
        }];
        let events = engine
            .model
            .slot_logits(&mut engine.cache, &tokens, run.all_positions)
            .and_then(|logits| sequence.take_prompt(len, &logits, &engine.tokenizer));
        engine.counters.prompt_tokens.fetch_add(len, Relaxed);
        let slot = sequence.slot;
        self.take_events(vec![(slot, events)]);
        len
    }

    /// Evaluates one token of every sequence whose prompt is complete.
    fn step(&mut self) {
        let engine = &mut self.engine;
        let mut running: Vec<&mut Sequence> = self
            .sequences
            .iter_mut()
            .filter(|s| !s.is_prefilling())
            .collect();
        if running.is_empty() {
            return;
        }
        let tokens: Vec<SlotTokens<'_>> = running
            .iter()
            .map(|sequence| SlotTokens {
                slot: sequence.slot,
                ids: sequence.next_run(1).ids,
            })
            .collect();
        let logits = engine.model.slot_logits(&mut engine.cache, &tokens, false);
        engine.counters.steps.fetch_add(1, Relaxed);
        let events = match logits {
            Ok(logits) => {
                let width = logits.len() / running.len();
                let sequences = running.par_iter_mut().zip(logits.par_chunks_exact(width));
                sequences
                    .map(|(sequence, logits)| {
                        (
                            sequence.slot,
                            sequence.take_logits(logits, &engine.tokenizer),
                        )
                    })
                    .collect()
            }
            Err(error) => {
                let failed = |sequence: &&mut Sequence| {
                    (sequence.slot, Err(Error::External(error.to_string())))
                };
                running.iter().map(failed).collect()
            }
        };
        self.take_events(events);
    }

    /// Sends the events of sequences, by slot, and ends sequences that are complete.
    fn take_events(&mut self, all: Vec<(usize, hybridnorm::Result<Vec<Event>>)>) {
        for (slot, events) in all {
            let Some(sequence) = self.sequences.iter().find(|sequence| sequence.slot == slot)
            else {
                continue;
            };
            let (job, choice) = (sequence.job, sequence.choice);
            match events {
                Ok(events) => {
                    let is_token = |event: &&Event| matches!(event, Event::Token { .. });
                    let tokens = events.iter().filter(is_token).count();
                    self.engine
                        .counters
                        .generated_tokens
                        .fetch_add(tokens, Relaxed);
                    let is_complete = events
                        .iter()
                        .any(|event| matches!(event, Event::Finished { .. }));
                    self.jobs.send(job, choice, events);
                    if is_complete {
                        self.free(slot);
                    }
                }
                Err(error) => self.jobs.fail(job, Failure::Model(error.to_string())),
            }
        }
    }
}
