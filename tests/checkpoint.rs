//! Reading checkpoints.

use gpt_oss_puzzle::weights::{Checkpoint, tiny_config, write_tiny_checkpoint};

#[test]
fn random_save_open() {
    let dir = tempfile::tempdir().unwrap();
    let t = std::time::Instant::now();
    write_tiny_checkpoint(dir.path(), 7).unwrap();
    println!("{:?}", t.elapsed());
    let mut total = 0;
    for e in std::fs::read_dir(dir.path()).unwrap() {
        let e = e.unwrap();
        total += e.metadata().unwrap().len();
        println!("{:?} {}", e.file_name(), e.metadata().unwrap().len());
    }
    println!("{total}");
    let c = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(c.config(), &tiny_config());
    let t = tokenizers::Tokenizer::from_file(dir.path().join("tokenizer.json")).unwrap();
    for w in
        ["assistant", "user", "system", "final", "analysis", "commentary", " the", "json", "to"]
    {
        assert_eq!(t.encode(w, false).unwrap().get_ids().len(), 1, "{w}");
    }
    println!(
        "{:?}",
        t.encode(
            "<|start|>assistant<|channel|>analysis<|message|>héllo wörld 12345 ☃<|end|>",
            false
        )
        .unwrap()
        .get_ids()
    );
    println!("{:?}", c.kv_scales(0));
}
