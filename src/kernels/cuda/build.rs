//! Compiles every .cu of this folder to a fat binary; does nothing without the feature `cuda`.
//!
//! - nvcc is `NVCC`, else `CUDA_HOME/bin/nvcc` (`CUDA_PATH` too), else the one on `PATH`.
//! - `CUDA_COMPUTE_CAPS=80,90a,120` (the default) are the devices that get machine code. The lowest of
//!   them also goes in as PTX, from which the driver makes code for devices that are not in the list.
//! - `NVCC_APPEND_FLAGS` is nvcc's own variable for more flags.
//!
//! A fat binary is named after everything that went into it, so that only what changed is compiled.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::{env, fs};

const SOURCES: &str = "src/kernels/cuda";
const DEFAULT_CAPS: &str = "80,90a,120";
/// The first release that knows compute capability 12.0.
const OLDEST_NVCC: (u32, u32) = (12, 8);
/// The first capability that multiplies BF16 on tensor cores.
const LOWEST_CAP: u32 = 80;

fn main() {
    println!("cargo::rerun-if-changed={SOURCES}");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let named = variable("NVCC").map(PathBuf::from);
    let home = variable("CUDA_HOME").or_else(|| variable("CUDA_PATH"));
    let path = match (named, home) {
        (Some(path), _) => path,
        (None, Some(home)) => Path::new(&home).join("bin/nvcc"),
        (None, None) => "nvcc".into(),
    };
    let caps = variable("CUDA_COMPUTE_CAPS").unwrap_or_else(|| DEFAULT_CAPS.into());
    // The code asks whether its kernels were compiled for the device, where nothing else would do.
    println!("cargo::rustc-env=CUDA_KERNELS_FOR={caps}");
    let compiled = targets(&caps).and_then(|targets| {
        let nvcc = Nvcc::at(path, variable("NVCC_APPEND_FLAGS"))?;
        compile_all(&nvcc, &targets, Path::new(SOURCES), &out)
    });
    match compiled {
        Ok(warnings) => warnings.iter().for_each(|line| println!("cargo::warning={line}")),
        Err(message) => {
            println!("cargo::error={message}");
            std::process::exit(1);
        }
    }
}

/// Leaves in `out` a fat binary of every .cu of `folder`, and the table of them. Gives what nvcc said.
pub(crate) fn compile_all(
    nvcc: &Nvcc,
    targets: &[String],
    folder: &Path,
    out: &Path,
) -> Result<Vec<String>, String> {
    let mut sources = files_of(folder, "cu");
    sources.sort();
    let mut wanted = Vec::new();
    for source in &sources {
        let name = source.file_stem().expect("a .cu has a name").to_string_lossy().into_owned();
        let hash = nvcc.fingerprint(source, targets);
        wanted.push((name.clone(), source.clone(), out.join(format!("{name}-{hash:016x}.fatbin"))));
    }
    // What an earlier source left behind would otherwise stay for ever.
    for old in files_of(out, "fatbin") {
        if !wanted.iter().any(|(_, _, fatbin)| *fatbin == old) {
            let _ = fs::remove_file(old);
        }
    }
    let missing = wanted.iter().filter(|(_, _, fatbin)| !fatbin.exists()).collect::<Vec<_>>();
    let jobs = missing.iter().map(|(_, source, fatbin)| (&**source, &**fatbin));
    let warnings = nvcc.compile(jobs, targets)?;
    let mut table = String::from("&[\n");
    for (name, _, fatbin) in &wanted {
        table += &format!("    ({name:?}, include_bytes!({:?})),\n", fatbin.display());
    }
    let written = fs::write(out.join("fatbins.rs"), table + "]\n");
    written.map(|()| warnings).map_err(|e| format!("{}: {e}", out.display()))
}

/// The environment variable `name`, if set and not empty.
fn variable(name: &str) -> Option<String> {
    println!("cargo::rerun-if-env-changed={name}");
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

fn files_of(folder: impl AsRef<Path>, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.extension().is_some_and(|e| e == extension)).collect()
}

/// The -gencode values of a list like `80,90a,120`.
pub(crate) fn targets(list: &str) -> Result<Vec<String>, String> {
    let mut caps = Vec::new();
    for cap in list.split(',').map(str::trim).filter(|cap| !cap.is_empty()) {
        let number = cap.trim_end_matches(['a', 'f']);
        match number.parse::<u32>() {
            Ok(n) if n >= LOWEST_CAP && cap.len() - number.len() <= 1 => caps.push((n, cap)),
            Ok(n) if n < LOWEST_CAP => {
                return Err(format!(
                    "CUDA_COMPUTE_CAPS: {cap} is below {LOWEST_CAP}, the oldest device that \
                     multiplies bf16 on tensor cores"
                ));
            }
            _ => {
                return Err(format!(
                    "CUDA_COMPUTE_CAPS: expected a list like {DEFAULT_CAPS}, found {cap:?}"
                ));
            }
        }
    }
    let mut targets: Vec<String> =
        caps.iter().map(|(_, cap)| format!("arch=compute_{cap},code=sm_{cap}")).collect();
    if targets.is_empty() {
        return Err("CUDA_COMPUTE_CAPS names no device".into());
    }
    // Code with a letter runs on that device alone, so its PTX would be of no use to others.
    let plain = caps.iter().filter(|(_, cap)| cap.ends_with(|c: char| c.is_ascii_digit()));
    if let Some((lowest, _)) = plain.min() {
        targets.push(format!("arch=compute_{lowest},code=compute_{lowest}"));
    }
    Ok(targets)
}

pub(crate) struct Nvcc {
    path: PathBuf,
    /// What it says of itself: part of a fat binary's name.
    version: String,
    /// More flags, which nvcc reads itself.
    appended: Option<String>,
}

impl Nvcc {
    /// The compiler `path`, which must run and be young enough.
    pub(crate) fn at(path: PathBuf, appended: Option<String>) -> Result<Nvcc, String> {
        let help = "the feature `cuda` needs the CUDA toolkit: set CUDA_HOME, or NVCC, or put nvcc \
                    on PATH";
        let answer = Command::new(&path).arg("--version").output();
        let answer = answer.map_err(|e| format!("cannot run {}: {e}; {help}", path.display()))?;
        let version = String::from_utf8_lossy(&answer.stdout).into_owned();
        let release = release(&version).filter(|_| answer.status.success());
        let release = release
            .ok_or_else(|| format!("{} --version names no release; {help}", path.display()))?;
        if release < OLDEST_NVCC {
            return Err(format!(
                "{} is CUDA {}.{}, expected at least {}.{}",
                path.display(),
                release.0,
                release.1,
                OLDEST_NVCC.0,
                OLDEST_NVCC.1
            ));
        }
        Ok(Nvcc { path, version, appended })
    }

    /// Changes when the source, a header, the compiler or its flags do.
    fn fingerprint(&self, source: &Path, targets: &[String]) -> u64 {
        let mut hasher = DefaultHasher::new();
        let folder = source.parent().expect("a source is in a folder");
        let mut inputs = files_of(folder, "cuh");
        inputs.sort();
        inputs.push(source.into());
        for input in inputs {
            fs::read(input).unwrap_or_default().hash(&mut hasher);
        }
        (&self.path, &self.version, &self.appended, targets).hash(&mut hasher);
        FLAGS.hash(&mut hasher);
        hasher.finish()
    }

    /// Compiles each source to its fat binary, as many at a time as cargo allows.
    fn compile<'a>(
        &self,
        jobs: impl Iterator<Item = (&'a Path, &'a Path)> + Send,
        targets: &[String],
    ) -> Result<Vec<String>, String> {
        let workers = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
        let jobs = Mutex::new(jobs);
        let (warnings, failures) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    loop {
                        let job = jobs.lock().expect("no worker panics").next();
                        let Some((source, fatbin)) = job else { break };
                        match self.compile_one(source, fatbin, targets) {
                            Ok(said) => warnings.lock().expect("no worker panics").extend(said),
                            Err(message) => {
                                failures.lock().expect("no worker panics").push(message)
                            }
                        }
                    }
                });
            }
        });
        match failures.into_inner().expect("no worker panics").pop() {
            Some(message) => Err(message),
            None => Ok(warnings.into_inner().expect("no worker panics")),
        }
    }

    /// Compiles `source` to `fatbin` and gives the lines that were said about it.
    fn compile_one(
        &self,
        source: &Path,
        fatbin: &Path,
        targets: &[String],
    ) -> Result<Vec<String>, String> {
        // Not in place: a compiler that is stopped must leave no half of a file under the name.
        let part = fatbin.with_extension(format!("{}.fatbin", std::process::id()));
        let mut command = Command::new(&self.path);
        command.args(FLAGS).args(targets.iter().flat_map(|t| ["-gencode", t]));
        command.arg("-o").arg(&part).arg(source);
        let output = command.output().map_err(|e| format!("{}: {e}", self.path.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            eprintln!("{}\n{command:?}\n{said}", String::from_utf8_lossy(&output.stdout));
            return Err(format!("nvcc could not compile {}, see above", source.display()));
        }
        fs::rename(&part, fatbin).map_err(|e| format!("{}: {e}", fatbin.display()))?;
        Ok(said.lines().map(String::from).collect())
    }
}

const FLAGS: &[&str] = &["-std=c++17", "-O3", "-lineinfo", "--fatbin"];

/// 13.0 of a line `Cuda compilation tools, release 13.0, V13.0.88`.
fn release(version: &str) -> Option<(u32, u32)> {
    let (_, rest) = version.split_once("release ")?;
    let (major, minor) = rest.split(',').next()?.trim().split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
