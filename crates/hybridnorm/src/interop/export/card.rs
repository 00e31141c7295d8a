//! Model card: equations, sizes, training, and how to check and run the folder.

use std::fmt::Write;

use super::facts::TrainingFacts;
use super::support::Support;
use super::{Format, Options, self_test};
use crate::error::Result;
use crate::model::{ModelConfig, counts};
use crate::placement::{Explanation, named_placements};

/// Contents of a model card.
pub(super) struct Card<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) model_type: &'a str,
    pub(super) options: Options,
    pub(super) training: Option<&'a TrainingFacts>,
    pub(super) support: &'a [Support],
    pub(super) has_tokenizer: bool,
}

impl Card<'_> {
    /// Returns `README.md`.
    ///
    /// # Errors
    /// If the configuration is invalid.
    pub(super) fn text(&self) -> Result<String> {
        let placement = &self.config.placement;
        let named = named_placements()
            .iter()
            .find(|named| named.placement() == *placement);
        let name = named.map_or("custom placement", |named| named.name);
        let mut explanation =
            Explanation::new(placement, self.config.n_layers, &self.config.facts())?;
        if let Some(named) = named {
            explanation = explanation.named(named.name);
        }
        let mut out = String::new();
        if self.options.format == Format::HuggingFace {
            out += "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- hybridnorm\n---\n\n";
        }
        let parameters = counts::parameters(self.config)?;
        let _ = writeln!(
            out,
            "# Decoder language model, norms placed as {name}\n\n{parameters} parameters as {}, exported by \
             `hybridnorm export` {}.\n",
            self.options.format.type_name(self.options.dtype),
            env!("CARGO_PKG_VERSION")
        );
        if let Some(named) = named {
            let _ = writeln!(out, "{name} ({}): {}.\n", named.source, named.description);
        }
        let _ = writeln!(
            out,
            "## Equations\n\nCanonical hash of the placement: `{}`.\n",
            explanation.hash
        );
        let _ = writeln!(out, "```text\n{}```\n", explanation.to_text());
        self.training(&mut out);
        match self.options.format {
            Format::HuggingFace => self.usage(&mut out),
            Format::Gguf(_) => {
                out += "## Use\n\n`llama-cli -m model.gguf`, or any other program with llama.cpp's library.\n"
            }
            Format::Safetensors => self.layout(&mut out),
        }
        Ok(out)
    }

    fn training(&self, out: &mut String) {
        let Some(facts) = self.training else {
            return;
        };
        let _ = writeln!(out, "## Training\n\n| | |\n|---|---|");
        let mut row = |name: &str, value: String| {
            let _ = writeln!(out, "| {name} | {} |", value.replace('|', "\\|"));
        };
        row("steps", facts.steps.to_string());
        row("tokens", facts.tokens.to_string());
        if !facts.data.is_empty() {
            row("data", facts.data.join(", "));
        }
        if let Some(seq_len) = facts.seq_len {
            row("sequence length", format!("{seq_len} tokens"));
        }
        if let Some(optimizer) = &facts.optimizer {
            row("optimizer", optimizer.clone());
        }
        if let Some(loss) = facts.training_loss {
            row(
                "training loss",
                format!("{loss:.4} nats per token: the batch of the last step, before its update"),
            );
        }
        match facts.validation_loss {
            Some((step, loss)) => row(
                "validation loss",
                format!(
                    "{loss:.4} nats per token: mean over the validation windows, after step {step}"
                ),
            ),
            None => row("validation loss", "not measured".into()),
        }
        out.push('\n');
    }

    fn usage(&self, out: &mut String) {
        let is_generated = self.model_type == super::super::huggingface::hybridnorm::MODEL_TYPE;
        let code = match is_generated {
            true => {
                "`modeling_hybridnorm.py` computes the model; it contains only what this placement uses."
            }
            false => {
                "The blocks are those of an architecture of `transformers`, so the folder contains no code."
            }
        };
        let trust = if is_generated {
            ", trust_remote_code=True"
        } else {
            ""
        };
        let _ = writeln!(
            out,
            "## Use\n\n{code}\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        );
        let _ = writeln!(
            out,
            "model = AutoModelForCausalLM.from_pretrained(\".\"{trust})"
        );
        if self.has_tokenizer {
            let _ = writeln!(
                out,
                "tokenizer = AutoTokenizer.from_pretrained(\".\"{trust})\nids = tokenizer(\"Once upon a time\", \
                 return_tensors=\"pt\")\nprint(tokenizer.decode(model.generate(**ids, max_new_tokens=50)[0]))"
            );
        }
        let _ = writeln!(out, "```\n\n| program | runs it | |\n|---|---|---|");
        for support in self.support {
            let can_run = if support.can_run { "yes" } else { "no" };
            let _ = writeln!(
                out,
                "| {} | {can_run} | {} |",
                support.program, support.reason
            );
        }
        let _ = writeln!(
            out,
            "\n`python {}` compares the residual stream after every block and the logits with those of the exported \
             model (`{}`), and names the first that differs.",
            self_test::SCRIPT,
            self_test::VALUES
        );
        if self_test::misses_window(self.config) {
            let _ = writeln!(
                out,
                "Its {} tokens are fewer than the longest sliding window, which they therefore do not check.",
                self_test::n_tokens(self.config)
            );
        }
    }

    fn layout(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "## Files\n\n`model.safetensors` contains the weights under the names of hybridnorm, and in its metadata, \
             under `config`, the configuration as JSON. Matrices are (out, in); `attention.qkv` has the rows of q, k \
             and v in turn, `feed_forward.up` those of gate and up, and `feed_forward.experts.*` the matrices of all \
             experts in turn. `{}` contains tokens with the residual stream after every block and the logits.",
            self_test::VALUES
        );
    }
}
