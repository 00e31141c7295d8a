//! Python of the loop over blocks, with the attention masks and rotary embeddings that they read.

use super::Generator;
use super::rotary::{name_of, rotary_embeddings};

/// Statements around the loop over blocks.
pub(super) struct BlockLoop {
    pub(super) masks: Vec<String>,
    pub(super) rotary: Vec<String>,
    pub(super) blocks: Vec<String>,
}

/// Writes attention masks, rotary embeddings and the loop over blocks; declares the rotary embeddings in `init`.
pub(super) fn block_loop(generator: &mut Generator<'_>, init: &mut Vec<String>) -> BlockLoop {
    let (masks, mask) = masks(generator);
    let (rotary, positions) = rotary(generator, init);
    let streams = match generator.resolved.streams.is_dual() {
        true => "x, y",
        false => "x",
    };
    let head = match mask.contains("[i]") || positions.contains("[i]") {
        true => "for i, layer in enumerate(self.layers):",
        false => "for layer in self.layers:",
    };
    let blocks = vec![
        head.to_owned(),
        format!("    {streams} = layer("),
        format!("        {streams},"),
        format!("        position_embeddings={positions},"),
        format!("        attention_mask={mask},"),
        "        cache=cache,".into(),
        "        position_ids=position_ids,".into(),
        "        **kwargs,".into(),
        "    )".into(),
    ];
    BlockLoop {
        masks,
        rotary,
        blocks,
    }
}

/// Returns the statements that make the attention masks, and the expression of a block's.
fn masks(generator: &Generator<'_>) -> (Vec<String>, &'static str) {
    let windows = generator.windows();
    let arguments = [
        "config=self.config,",
        "inputs_embeds=inputs_embeds,",
        "attention_mask=attention_mask,",
        "position_ids=position_ids,",
        "**{CACHE: cache},",
    ];
    let arguments = arguments.map(|argument| format!("    {argument}"));
    if !windows.contains(&true) {
        let begin = ["mask = create_causal_mask(".to_owned()];
        let lines = begin.into_iter().chain(arguments).chain([")".into()]);
        return (lines.collect(), "mask");
    }
    let begin = ["arguments = dict(".to_owned()];
    let mut lines: Vec<String> = begin.into_iter().chain(arguments).collect();
    lines.extend([")".into(), "masks = {".into()]);
    if windows.contains(&false) {
        lines.push("    \"full_attention\": create_causal_mask(**arguments),".into());
    }
    lines.push("    \"sliding_attention\": create_sliding_window_causal_mask(**arguments),".into());
    lines.push("}".into());
    (lines, "masks[self.config.layer_types[i]]")
}

/// Returns the statements that compute the rotary embeddings, and the expression of a block's; declares them in `init`.
fn rotary(generator: &mut Generator<'_>, init: &mut Vec<String>) -> (Vec<String>, String) {
    let (classes, of_layer) = rotary_embeddings(generator);
    let attribute = |i: usize| match i {
        0 => "rotary_emb".to_owned(),
        i => format!("rotary_emb{}", i + 1),
    };
    init.extend(
        (0..classes.len()).map(|i| format!("self.{} = {}(config)", attribute(i), name_of(i))),
    );
    let call = |i: usize| format!("self.{}(inputs_embeds, position_ids)", attribute(i));
    match classes.len() {
        0 => (vec![], "None".to_owned()),
        1 => (vec![format!("rotary = {}", call(0))], "rotary".to_owned()),
        n => {
            let all: Vec<String> = (0..n).map(call).collect();
            let module = &mut generator.module;
            let table = module.per_layer_index("rotary_of_layer", &of_layer);
            let line = format!("rotary = ({})", all.join(", "));
            (vec![line], format!("rotary[{table}[i]]"))
        }
    }
}
