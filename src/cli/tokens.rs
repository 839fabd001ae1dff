//! `pochade tokens`: a prompt as the text encoder will see it; no network is loaded.

use anyhow::Result;
use serde_json::{Value, json};

use super::args::TokensArgs;
use super::exit::{Exit, Failure, OrExit};
use super::model::Choice;
use super::{printer, prompt};
use crate::networks::config::ClipConfig;
use crate::prompt::{Prompts, Room, Text, Token, Tokenizer, Weighted, take_lora_tags};
use crate::request::PromptSyntax;

/// Prints each token of a prompt with its id and weight, chunk by chunk.
///
/// # Errors
/// When there is no prompt, it can't be understood, or the model or an embedding can't be used.
pub fn run(args: &TokensArgs) -> Result<Exit, Failure> {
    let prompt = prompt::read(&args.prompt, false)?.unwrap_or_default();
    let checkpoint = Choice::new(args.model.as_deref(), None).open()?;
    let tokenizer = Tokenizer::new(checkpoint.vocabulary()).or_exit(Exit::Model)?;
    let config = ClipConfig::parse(&checkpoint.configs().text_encoder).or_exit(Exit::Model)?;
    let room = Room { width: config.hidden_size, positions: config.max_position_embeddings };
    // Tags are told, but the files they name are of no interest here.
    let (prompt, tags) = match args.prompt_syntax {
        PromptSyntax::Weighted => take_lora_tags(&prompt).or_exit(Exit::Usage)?,
        PromptSyntax::Plain => (prompt, Vec::new()),
    };
    let text = Text {
        prompt,
        negative_prompt: None,
        syntax: args.prompt_syntax,
        clip_skip: 1,
        embedding: args.embedding.clone(),
        embedding_dir: args.embedding_dir.clone(),
        lora: Vec::new(),
        lora_dir: None,
    };
    let prompts = Prompts::read(&text, &tokenizer, room).or_exit(Exit::Usage)?;
    let tags: Vec<_> = tags.into_iter().map(|tag| (tag.name, tag.weight)).collect();
    let text = if args.json {
        json(&prompts, &tokenizer, &tags).to_string()
    } else {
        table(&prompts, &tokenizer, &tags, room)
    };
    printer::stdout_text(&text).or_exit(Exit::PictureFailed)?;
    Ok(Exit::Done)
}

/// How a token reads: as the vocabulary spells it, or the embedding's word and the vector's number from 1.
fn spelling(token: Token, prompts: &Prompts, tokenizer: &Tokenizer) -> String {
    match token {
        Token::Id(id) => tokenizer.spelling(id).unwrap_or_default(),
        Token::Vector { embedding, row } => format!("{}#{}", prompts.embedding_name(embedding), row + 1),
    }
}

fn json(prompts: &Prompts, tokenizer: &Tokenizer, tags: &[(String, f64)]) -> Value {
    let token = |Weighted { token, weight }: &Weighted| {
        let id = match token {
            Token::Id(id) => Value::from(*id),
            Token::Vector { .. } => Value::Null,
        };
        json!({ "token": spelling(*token, prompts, tokenizer), "id": id, "weight": weight })
    };
    let chunks: Vec<Vec<Value>> =
        prompts.prompt.chunks.iter().map(|chunk| chunk.iter().map(token).collect()).collect();
    let lora: Vec<Value> =
        tags.iter().map(|(name, weight)| json!({ "name": name, "weight": weight })).collect();
    json!({ "chunks": chunks, "left_out": prompts.prompt.left_out, "lora": lora })
}

/// One line per token; start, end and padding of each chunk are understood.
fn table(prompts: &Prompts, tokenizer: &Tokenizer, tags: &[(String, f64)], room: Room) -> String {
    let mut lines = Vec::new();
    for (number, chunk) in prompts.prompt.chunks.iter().enumerate() {
        lines.push(format!("chunk {}: {} of {} tokens", number + 1, chunk.len(), room.positions - 2));
        for weighted in chunk {
            let id = match weighted.token {
                Token::Id(id) => id.to_string(),
                Token::Vector { .. } => "-".to_owned(),
            };
            let spelling = spelling(weighted.token, prompts, tokenizer);
            lines.push(format!("  {id:>5}  {:>6.3}  {spelling}", weighted.weight));
        }
    }
    if prompts.prompt.left_out > 0 {
        lines.push(format!("{} more tokens are left out", prompts.prompt.left_out));
    }
    lines.extend(tags.iter().map(|(name, weight)| format!("lora {name} at {weight}")));
    lines.join("\n")
}
