//! The build script of the feature `cuda`, with stand-ins for nvcc: what it compiles and what it says.

#[path = "../src/kernels/cuda/build.rs"]
#[allow(dead_code)]
mod build;

#[cfg(unix)]
mod tests {
    use super::build::{Nvcc, compile_all, targets};
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// One test at a time: a script that another thread's child still holds open cannot be run.
    fn alone() -> MutexGuard<'static, ()> {
        static ALONE: Mutex<()> = Mutex::new(());
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An nvcc of this release that notes each source it is given in a file beside itself and writes its
    /// arguments as the output.
    fn nvcc(folder: &Path, release: &str) -> PathBuf {
        let path = folder.join("nvcc");
        let script = format!(
            "#!/bin/sh\n\
             [ \"$1\" = --version ] && echo 'Cuda compilation tools, release {release}, V1' && exit\n\
             for a; do case $p in -o) o=$a ;; esac; p=$a; done\n\
             grep -q BROKEN \"$a\" && echo \"$a: error\" >&2 && exit 1\n\
             grep -q UNUSED \"$a\" && echo \"$a: warning\" >&2\n\
             basename \"$a\" >> '{}/compiled'; echo \"$@\" > \"$o\"\n",
            folder.display()
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// What was compiled since the last call.
    fn compiled(folder: &Path) -> Vec<String> {
        let list = fs::read_to_string(folder.join("compiled")).unwrap_or_default();
        let _ = fs::remove_file(folder.join("compiled"));
        let mut names: Vec<String> = list.lines().map(String::from).collect();
        names.sort();
        names
    }

    #[test]
    fn only_what_changed_is_compiled() {
        let _alone = alone();
        let dir = tempfile::tempdir().unwrap();
        let (folder, out) = (dir.path(), dir.path().join("out"));
        fs::create_dir(&out).unwrap();
        for (name, text) in [("a.cu", "1"), ("b.cu", "2"), ("args.cuh", "3"), ("mod.rs", "4")] {
            fs::write(folder.join(name), text).unwrap();
        }
        let mut compiler = Nvcc::at(nvcc(folder, "13.0"), None).unwrap();
        let build = |nvcc: &Nvcc, caps: &str| {
            let said = compile_all(nvcc, &targets(caps).unwrap(), folder, &out).unwrap();
            assert!(said.is_empty(), "{said:?}");
            compiled(folder)
        };
        assert_eq!(build(&compiler, "80,90a"), ["a.cu", "b.cu"]);
        assert!(build(&compiler, "80,90a").is_empty());
        fs::write(folder.join("mod.rs"), "5").unwrap();
        assert!(build(&compiler, "80,90a").is_empty());
        fs::write(folder.join("a.cu"), "6").unwrap();
        assert_eq!(build(&compiler, "80,90a"), ["a.cu"]);
        fs::write(folder.join("args.cuh"), "7").unwrap();
        assert_eq!(build(&compiler, "80,90a"), ["a.cu", "b.cu"]);
        assert_eq!(build(&compiler, "80"), ["a.cu", "b.cu"]);
        compiler = Nvcc::at(nvcc(folder, "13.1"), None).unwrap();
        assert_eq!(build(&compiler, "80"), ["a.cu", "b.cu"]);
        fs::remove_file(folder.join("b.cu")).unwrap();
        assert!(build(&compiler, "80").is_empty());
        // One fat binary is left, and the table names it alone.
        let left: Vec<PathBuf> =
            fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()).collect();
        let fatbin = left.iter().find(|path| path.extension().unwrap() == "fatbin").unwrap();
        assert_eq!(left.len(), 2, "{left:?}");
        let table = fs::read_to_string(out.join("fatbins.rs")).unwrap();
        assert!(table.contains(&format!("({:?}, include_bytes!({:?}))", "a", fatbin)), "{table}");
        let arguments = fs::read_to_string(fatbin).unwrap();
        assert!(arguments.contains("-gencode arch=compute_80,code=sm_80"), "{arguments}");
    }

    #[test]
    fn a_source_that_does_not_compile_is_named_and_leaves_nothing() {
        let _alone = alone();
        let dir = tempfile::tempdir().unwrap();
        let (folder, out) = (dir.path(), dir.path().join("out"));
        fs::create_dir(&out).unwrap();
        fs::write(folder.join("a.cu"), "BROKEN").unwrap();
        let compiler = Nvcc::at(nvcc(folder, "13.0"), None).unwrap();
        let targets = targets("90a").unwrap();
        let error = compile_all(&compiler, &targets, folder, &out).unwrap_err();
        assert!(error.contains("could not compile") && error.contains("a.cu"), "{error}");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
        fs::write(folder.join("a.cu"), "UNUSED").unwrap();
        let said = compile_all(&compiler, &targets, folder, &out).unwrap();
        assert!(said.len() == 1 && said[0].ends_with("a.cu: warning"), "{said:?}");
    }

    #[test]
    fn devices_are_a_list_of_capabilities() {
        let list = |caps| targets(caps).map(|targets| targets.join(" "));
        let ptx = "arch=compute_80,code=compute_80";
        assert_eq!(
            list("80, 90a,120").unwrap(),
            format!(
                "arch=compute_80,code=sm_80 arch=compute_90a,code=sm_90a \
                 arch=compute_120,code=sm_120 {ptx}"
            )
        );
        // Code for one device only brings no PTX: another could not use it.
        assert_eq!(list("90a").unwrap(), "arch=compute_90a,code=sm_90a");
        for (caps, says) in [
            ("75,80", "75 is below 80"),
            ("", "names no device"),
            (",", "names no device"),
            ("9.0", "expected a list like 80,90a,120, found \"9.0\""),
            ("90aa", "found \"90aa\""),
            ("sm_90", "found \"sm_90\""),
        ] {
            let error = list(caps).unwrap_err();
            assert!(error.contains(says), "{caps}: {error}");
        }
    }

    #[test]
    fn a_compiler_that_is_missing_or_too_old_is_named() {
        let _alone = alone();
        let dir = tempfile::tempdir().unwrap();
        let refused = |path: PathBuf| match Nvcc::at(path.clone(), None) {
            Ok(_) => panic!("{} is good enough", path.display()),
            Err(message) => message,
        };
        let missing = refused(dir.path().join("nowhere"));
        assert!(missing.contains("nowhere: ") && missing.contains("set CUDA_HOME"), "{missing}");
        let old = refused(nvcc(dir.path(), "12.6"));
        assert!(old.contains("is CUDA 12.6, expected at least 12.8"), "{old}");
        let strange = refused(nvcc(dir.path(), "unknown"));
        assert!(strange.contains("names no release"), "{strange}");
        assert!(Nvcc::at(nvcc(dir.path(), "12.8"), None).is_ok());
    }
}
