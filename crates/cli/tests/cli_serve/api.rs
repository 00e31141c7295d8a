//! Requests and their answers.

use serde_json::{Value, json};

use crate::server::{Server, trained};

#[test]
fn completions_are_those_of_generate() {
    let dir = trained();
    let server = Server::start(&dir, &[]);
    for (flags, sampling) in [
        (
            vec!["--temperature", "0"],
            json!({"temperature": 0, "seed": 3}),
        ),
        (
            vec!["--seed", "5", "--top-p", "0.9"],
            json!({"temperature": 0.8, "top_p": 0.9, "seed": 5}),
        ),
    ] {
        let mut args = vec![
            "generate",
            "run",
            "--prompt",
            "Once upon",
            "--max-tokens",
            "20",
            "--json",
        ];
        args.extend(flags);
        let expected = dir.json(&args)["text"].clone();
        let mut body = sampling;
        body["prompt"] = "Once upon".into();
        body["max_tokens"] = 20.into();
        assert_eq!(server.choice(body.clone())["text"], expected);
        // As token ids, and as a stream.
        body["prompt"] = "Once upon".bytes().collect::<Vec<u8>>().into();
        assert_eq!(server.choice(body.clone())["text"], expected);
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
        let reply = server.complete(body);
        assert!(
            reply.head.contains("content-type: text/event-stream"),
            "{}",
            reply.head
        );
        let events = reply.events();
        let (last, chunks) = events.split_last().unwrap();
        assert_eq!(*last, "[DONE]");
        let chunks: Vec<Value> = chunks
            .iter()
            .map(|chunk| serde_json::from_str(chunk).unwrap())
            .collect();
        let text: String = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["text"].as_str())
            .collect();
        assert_eq!(text, expected.as_str().unwrap());
        let usage = &chunks.last().unwrap()["usage"];
        assert_eq!(usage["prompt_tokens"], 9);
        assert!(chunks.len() > 5, "one chunk per token");
    }
    let (code, text) = server.stop();
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("memory: at most") && text.contains("keys and values of 16 × 64 tokens"),
        "{text}"
    );
}

/// Not those of `generate`: the rounding of a matmul depends on the number of positions of a run.
#[test]
fn completions_in_bfloat16_are_reproducible_and_near_those_in_single_precision() {
    let dir = trained();
    let body = json!({
        "prompt": "Once upon",
        "max_tokens": 30,
        "temperature": 0.8,
        "seed": 5,
        "echo": true,
        "logprobs": 1,
    });
    let run = |more: &[&str]| {
        let server = Server::start(&dir, more);
        let [first, second] = [(); 2].map(|()| server.choice(body.clone()));
        assert_eq!(first, second, "{more:?}");
        let (code, text) = server.stop();
        assert_eq!(code, 0, "{text}");
        assert_eq!(
            text.contains("computed in bf16"),
            !more.is_empty(),
            "{text}"
        );
        first["logprobs"]["token_logprobs"].as_array().unwrap()[1..9].to_vec()
    };
    let (single, bf16) = (run(&[]), run(&["--precision", "bf16"]));
    assert_ne!(single, bf16);
    for (a, b) in single.iter().zip(&bf16) {
        let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
        assert!((a - b).abs() < 0.05, "{a} {b}");
    }
}

#[test]
fn echo_gives_the_log_probabilities_that_evaluations_read() {
    let dir = trained();
    let server = Server::start(&dir, &[]);
    let text = "Once upon a time";
    let ids: Vec<u8> = text.bytes().collect();
    for max_tokens in [0, 1] {
        let body = |prompt: Value| json!({"prompt": prompt, "echo": true, "logprobs": 1, "max_tokens": max_tokens, "temperature": 0});
        let choice = server.choice(body(text.into()));
        assert_eq!(choice, server.choice(body(json!([ids]))));
        let logprobs = &choice["logprobs"];
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(
                logprobs[list].as_array().unwrap().len(),
                text.len() + max_tokens,
                "{list}"
            );
        }
        assert!(choice["text"].as_str().unwrap().starts_with(text));
        assert_eq!(
            choice["text"].as_str().unwrap().len() - text.len(),
            max_tokens
        );
        assert_eq!(
            (&logprobs["token_logprobs"][0], &logprobs["top_logprobs"][0]),
            (&Value::Null, &Value::Null)
        );
        for i in 1..text.len() {
            let own = logprobs["token_logprobs"][i].as_f64().unwrap();
            let top = logprobs["top_logprobs"][i].as_object().unwrap();
            let best = top
                .values()
                .map(|value| value.as_f64().unwrap())
                .fold(f64::MIN, f64::max);
            assert!(own < 0.0 && own <= best, "{i}");
            assert_eq!(
                top[logprobs["tokens"][i].as_str().unwrap()]
                    .as_f64()
                    .unwrap(),
                own
            );
            assert_eq!(logprobs["text_offset"][i], i);
        }
    }
    // The sum is that of the evaluation.
    let choice =
        server.choice(json!({"prompt": text, "echo": true, "logprobs": 0, "max_tokens": 0}));
    let sum: f64 = choice["logprobs"]["token_logprobs"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_f64)
        .sum();
    dir.write("text.txt", text);
    let loss = dir.json(&[
        "eval", "run", "--data", "text.txt", "--split", "all", "--json",
    ]);
    // The evaluation adds the end-of-text token as a target.
    let end = json!({"prompt": [ids.iter().map(|id| i32::from(*id)).chain([256]).collect::<Vec<_>>()], "echo": true, "logprobs": 0, "max_tokens": 0});
    let end = server.choice(end)["logprobs"]["token_logprobs"][text.len()]
        .as_f64()
        .unwrap();
    let mean = -(sum + end) / text.len() as f64;
    let expected = loss["loss"].as_f64().unwrap_or_else(|| panic!("{loss}"));
    assert!((mean - expected).abs() < 1e-4, "{mean} {expected}");
    server.stop();
}

#[test]
fn several_prompts_and_choices_are_numbered() {
    let dir = trained();
    let server = Server::start(&dir, &["--slots", "3"]);
    let prompts = ["a", "bcd", "ef"];
    let body = json!({"prompt": prompts, "n": 2, "seed": 1, "max_tokens": 4, "logprobs": 2});
    let reply = server.complete(body).json();
    let choices = reply["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 6);
    for (i, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], i);
        let alone =
            json!({"prompt": prompts[i / 2], "seed": 1 + i % 2, "max_tokens": 4, "logprobs": 2});
        assert_eq!(choice["text"], server.choice(alone)["text"], "{i}");
    }
    assert_eq!(reply["usage"]["prompt_tokens"], 6);
    let stopped = json!({"prompt": "a", "max_tokens": 30, "temperature": 0});
    let text = server.choice(stopped.clone())["text"]
        .as_str()
        .unwrap()
        .to_owned();
    let stop = &text[3..5];
    let mut body = stopped;
    body["stop"] = json!(["\u{0}", stop]);
    let choice = server.choice(body);
    assert_eq!(
        choice["text"].as_str().unwrap(),
        &text[..text.find(stop).unwrap()]
    );
    assert_eq!(choice["finish_reason"], "stop");
    server.stop();
}

#[test]
fn chats_use_the_template() {
    let dir = trained();
    let server = Server::start(&dir, &[]);
    let body =
        json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "temperature": 0});
    let reply = server.post("/v1/chat/completions", &body);
    assert_eq!(reply.status, 400);
    assert!(
        reply
            .error()
            .1
            .contains("no chat template: use /v1/completions, or start"),
        "{reply:?}"
    );
    server.stop();
    let template =
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}<answer>";
    dir.write("chat.jinja", template);
    let server = Server::start(&dir, &["--chat-template", "chat.jinja"]);
    let reply = server.post("/v1/chat/completions", &body).json();
    let message = &reply["choices"][0]["message"];
    assert_eq!(message["role"], "assistant");
    let mut ids: Vec<i32> = b"<user>hi".iter().map(|byte| i32::from(*byte)).collect();
    ids.push(256);
    ids.extend(b"<answer>".iter().map(|byte| i32::from(*byte)));
    assert_eq!(reply["usage"]["prompt_tokens"], ids.len());
    let expected = server.choice(json!({"prompt": ids, "max_tokens": 5, "temperature": 0}));
    assert_eq!(message["content"], expected["text"]);
    let mut stream = body.clone();
    stream["stream"] = true.into();
    stream["logprobs"] = true.into();
    stream["top_logprobs"] = 2.into();
    let reply = server.post("/v1/chat/completions", &stream);
    let events = reply.events();
    let chunks: Vec<Value> = events[..events.len() - 1]
        .iter()
        .map(|e| serde_json::from_str(e).unwrap())
        .collect();
    let text: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(text, expected["text"].as_str().unwrap());
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(
        chunks[0]["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    server.stop();
    dir.write("broken.jinja", "{% for");
    let serve = [
        "serve",
        "run",
        "--port",
        "0",
        "--chat-template",
        "broken.jinja",
    ];
    let words = ["--chat-template broken.jinja: the chat template is not valid"];
    dir.expect_error(2, &serve, &words);
    // A template of the checkpoint need not be used.
    dir.train("bpe", &["--set", "data.tokenizer=bpe:270"]);
    let tokenizer = dir.read("bpe/checkpoints/step-00000020/tokenizer/tokenizer.json");
    dir.write("own/tokenizer.json", tokenizer);
    dir.write("own/chat_template.jinja", "{% for");
    std::fs::remove_dir_all(dir.path("run")).unwrap();
    dir.train("run", &["--set", "data.tokenizer=own/tokenizer.json"]);
    let server = Server::start(&dir, &[]);
    let reply = server.post("/v1/chat/completions", &body);
    assert!(
        reply.error().1.contains("the chat template is not valid"),
        "{reply:?}"
    );
    let (_, text) = server.stop();
    assert!(text.contains("chat requests will be errors"), "{text}");
}

#[test]
fn unsupported_and_invalid_fields_of_completions_are_named() {
    let dir = trained();
    let server = Server::start(&dir, &[]);
    let with = |key: &str, value: Value| {
        let mut body = json!({"prompt": "a", "max_tokens": 2});
        body[key] = value;
        server.complete(body)
    };
    for (key, value) in [
        ("logit_bias", json!({"50": 1})),
        ("best_of", json!(3)),
        ("n", json!(17)),
        ("n", json!(0)),
        ("suffix", json!("x")),
        ("presence_penalty", json!(0.5)),
        ("frequency_penalty", json!(-1)),
        ("logprobs", json!(21)),
        ("temperature", json!(-1)),
        ("top_p", json!(0)),
        ("max_tokens", json!(-3)),
        ("min_p", json!(0.1)),
        ("tools", json!([])),
        ("prompt", json!([[]])),
        ("prompt", json!([])),
        ("prompt", json!([1, 300])),
        ("prompt", json!({"a": 1})),
        ("prompt", Value::Null),
        ("prompt", json!("a".repeat(65))),
        ("stream_options", json!({})),
        ("stop", json!([""])),
    ] {
        let reply = with(key, value.clone());
        let (param, message) = reply.error();
        assert_eq!(reply.status, 400, "{key} {value}: {message}");
        let named = param.as_str().unwrap_or_default();
        assert!(named.starts_with(key), "{key} {value}: {named}: {message}");
    }
    // An empty text is one token.
    assert_eq!(with("prompt", json!("")).status, 200);
    let reply = with("model", json!("gpt-4"));
    assert_eq!((reply.status, reply.error().0), (404, json!("model")));
    // Values without effect.
    for (key, value) in [
        ("logit_bias", json!({})),
        ("best_of", json!(1)),
        ("suffix", Value::Null),
        ("presence_penalty", json!(0)),
        ("user", json!("me")),
        ("model", json!("tiny")),
        // Its start token.
        ("prompt", json!("")),
        ("prompt", json!("a".repeat(63))),
    ] {
        assert_eq!(with(key, value.clone()).status, 200, "{key} {value}");
    }
    server.stop();
}

#[test]
fn unsupported_and_invalid_fields_of_chats_are_named() {
    let dir = trained();
    dir.write("chat.jinja", "{{ messages[0].content }}");
    let server = Server::start(&dir, &["--chat-template", "chat.jinja"]);
    let chat = |key: &str, value: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 2});
        body[key] = value;
        server.post("/v1/chat/completions", &body)
    };
    for (key, value) in [
        ("tools", json!([{"type": "function"}])),
        ("response_format", json!({"type": "json_object"})),
        ("top_logprobs", json!(2)),
        ("messages", json!([])),
        ("messages", json!([{"role": "tool", "content": "a"}])),
        ("messages", json!([{"role": "user"}])),
        (
            "messages",
            json!([{"role": "user", "content": [{"type": "image_url"}]}]),
        ),
        ("max_completion_tokens", json!(3)),
    ] {
        let reply = chat(key, value.clone());
        assert_eq!(reply.status, 400, "{key} {value}: {reply:?}");
        let param = reply.error().0;
        let key = if key == "max_completion_tokens" {
            "max_tokens"
        } else {
            key
        };
        assert!(
            param.as_str().unwrap().starts_with(key),
            "{key} {value}: {param}"
        );
    }
    assert_eq!(chat("tools", json!([])).status, 200);
    server.stop();
}

#[test]
fn other_routes_answer() {
    let dir = trained();
    let server = Server::start(&dir, &[]);
    let port = server.address.rsplit(':').next().unwrap();
    let second = ["serve", "run", "--port", port];
    dir.expect_error(1, &second, &["cannot listen on", "; choose another --port"]);
    assert_eq!(server.get("/health").json(), json!({"status": "ok"}));
    let models = server.get("/v1/models").json();
    assert_eq!(
        (
            &models["data"][0]["id"],
            &models["data"][0]["max_model_len"]
        ),
        (&json!("tiny"), &json!(64))
    );
    assert_eq!(server.get("/v1/models/tiny").json()["object"], "model");
    assert_eq!(server.get("/v1/models/other").status, 404);
    let page = server.get("/");
    assert!(
        page.head
            .contains("content-security-policy: default-src 'none'"),
        "{}",
        page.head
    );
    assert!(page.body.contains("/v1/completions") && !page.body.contains("https://"));
    server.choice(json!({"prompt": "abc", "max_tokens": 4, "temperature": 0}));
    assert_eq!(
        (
            server.get("/no").status,
            server.get("/v1/completions").status
        ),
        (404, 405)
    );
    let metrics = server.get("/metrics").body;
    for line in [
        "hybridnorm_prompt_tokens_total 3",
        "hybridnorm_responses_total{status=\"404\"} 2",
        "hybridnorm_request_seconds_count 1",
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line}\n{metrics}"
        );
    }
    server.stop();
}

#[test]
fn an_api_key_protects_the_model() {
    let dir = trained();
    dir.write("key", "secret\n");
    let server = Server::start(&dir, &["--api-key-file", "key"]);
    let body = json!({"prompt": "a", "max_tokens": 1}).to_string();
    let with = |headers: &str| {
        server
            .request("POST", "/v1/completions", headers, &body)
            .status
    };
    assert_eq!(with(""), 401);
    assert_eq!(with("Authorization: Bearer secreT\r\n"), 401);
    assert_eq!(with("Authorization: Bearer secret\r\n"), 200);
    assert_eq!(
        (
            server.get("/v1/models").status,
            server.get("/metrics").status
        ),
        (401, 401)
    );
    assert_eq!(
        (server.get("/").status, server.get("/health").status),
        (200, 200)
    );
    server.stop();
    dir.write("empty", "\n");
    dir.expect_any_error(
        &["serve", "run", "--api-key-file", "empty"],
        &["empty", "contains no API key"],
    );
}

#[test]
fn web_pages_of_other_origins_are_rejected() {
    let dir = trained();
    let server = Server::start(&dir, &[]);
    let own = format!("Origin: http://{}\r\n", server.address);
    assert_eq!(server.request("GET", "/v1/models", &own, "").status, 200);
    assert_eq!(
        server
            .request("GET", "/v1/models", "Origin: http://evil.example\r\n", "")
            .status,
        403
    );
    let rebound = b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    assert_eq!(server.raw(rebound).status, 403);
    server.stop();
}
