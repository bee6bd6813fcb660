//! Activations rounded to bf16 where they are multiplied: what that changes in the logits, on the shipped
//! model and on random weights of the released shapes.

#[path = "common/divergence.rs"]
mod divergence;
#[path = "../examples/world/mod.rs"]
mod world;

use divergence::{DIR, logits, on_random_weights, on_the_shipped_model};
use gpt_oss_puzzle::generation::SamplingParams;
use gpt_oss_puzzle::model::{Activations, GptOss};
use gpt_oss_puzzle::{ChatRequest, ErrorKind, Model};

fn in_bf16(model: GptOss) -> GptOss {
    model.with_activations(Activations::Bf16)
}

#[test]
fn the_shipped_model_hardly_changes() {
    let difference = on_the_shipped_model(in_bf16);
    println!("{difference}");
    assert!(difference.rows > 1000 && difference.divergence > 0.0, "{difference}");
    assert!(difference.divergence < 5e-4 && difference.other <= 5, "{difference}");
}

#[test]
fn random_weights_of_the_released_shapes_hardly_change() {
    let difference = on_random_weights(in_bf16);
    println!("{difference}");
    assert!(difference.divergence > 0.0 && difference.divergence < 3e-3, "{difference}");
}

#[test]
fn a_chat_takes_the_option_and_a_wrong_name_is_an_error() {
    let model = Model::builder(DIR).activations(Activations::Bf16).load().unwrap();
    let request = ChatRequest::user("What is the capital of France?").date("2026-01-02");
    let answer = model.chat(&request.sampling(SamplingParams::greedy()));
    assert_eq!(answer.unwrap().text(), "The capital of France is Paris.");
    let exact = GptOss::new(model.checkpoint(), 0).unwrap();
    let tokens = [5, 6, 7];
    assert_ne!(logits(model.transformer(), &tokens), logits(&exact, &tokens));
    assert_eq!(logits(model.transformer(), &tokens), logits(&in_bf16(exact), &tokens));
    let error = "int4".parse::<Activations>().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert_eq!(error.to_string(), "activations are \"int4\", expected \"exact\" or \"bf16\"");
}
