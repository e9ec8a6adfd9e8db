//! Finds an installed SPDK for the feature `spdk`: declarations by bindgen, a shim by cc, libraries by pkg-config.
//!
//! Without the feature it does nothing. What is missing is said in one sentence that names what was looked for and
//! where; nothing of SPDK is copied, patched or built.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "spdk")]
    if let Err(problem) = spdk::find() {
        println!("cargo::error={problem}");
    }
}

#[cfg(feature = "spdk")]
mod spdk {
    use std::collections::BTreeSet;
    use std::env;
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    /// What we call lives in the last of them; the others register transports, modules and subsystems when they are
    /// loaded, and so have to be there though nobody names them.
    const PACKAGES: &[&str] = &[
        "spdk_env_dpdk",
        "spdk_nvme",
        "spdk_sock_modules",
        "spdk_accel_modules",
        "spdk_bdev_modules",
        "spdk_bdev",
        "spdk_event_bdev",
    ];

    /// The system's libraries, which no other package asks for.
    const SYSTEM: &str = "spdk_syslibs";

    /// The releases that this was written for.
    const RELEASES: core::ops::RangeInclusive<(u32, u32)> = (24, 9)..=(26, 5);

    const FOLDER: &str = "vendor/spdk";

    /// The functions and types that `src/spdk` uses, and what they are made of.
    const FUNCTIONS: &str = "spdk_(bdev_(open_ext|close|desc_get_bdev|get_[a-z_]+|has_write_cache|is_zoned|io_type_supported|\
        io_get_nvme_status|free_io|(read|write|unmap|write_zeroes|flush|copy)_blocks|(readv|writev|comparev)_blocks|reset)|\
        put_io_channel|thread_(create|poll|exit|is_exited|destroy|lib_init|lib_fini)|[sg]et_thread|\
        subsystem_(init|fini|load_config)|rpc_set_state|env_fini|unaffinitize_thread|\
        mem_(un)?register|log_set_print_level)|udirect_.*";

    const CONSTANTS: &str = "SPDK_(BDEV_EVENT|BDEV_IO_TYPE|RPC|LOG|VERSION)_.*";

    pub(super) fn find() -> Result<(), String> {
        for name in ["SPDK_PREFIX", "PKG_CONFIG_PATH"] {
            println!("cargo::rerun-if-env-changed={name}");
        }
        println!("cargo::rerun-if-changed={FOLDER}");
        let found = Found::look()?;
        found.check_release()?;
        found.declare()?;
        found.shim();
        found.link()
    }

    struct Found {
        includes: Vec<PathBuf>,
        folders: Vec<PathBuf>,
        /// Libraries of SPDK and DPDK, each once.
        libraries: Vec<String>,
        /// What they need of the system: names, and archives by path.
        system: Vec<String>,
        archives: Vec<PathBuf>,
    }

    impl Found {
        fn look() -> Result<Self, String> {
            let where_else = search_path();
            let mut found = Self {
                includes: Vec::new(),
                folders: Vec::new(),
                libraries: Vec::new(),
                system: Vec::new(),
                archives: Vec::new(),
            };
            let mut seen = BTreeSet::new();
            for name in PACKAGES.iter().chain([&SYSTEM]) {
                let package = probe(name, &where_else)?;
                found.includes.extend(package.includes);
                found.folders.extend(package.folders);
                for library in package.libraries {
                    if !seen.insert(library.clone()) {
                        continue;
                    }
                    let is_theirs = library.starts_with("spdk_") || library.starts_with("rte_");
                    if is_theirs { &mut found.libraries } else { &mut found.system }.push(library);
                }
                found.archives.extend(package.archives);
            }
            found.includes.dedup();
            found.folders.dedup();
            Ok(found)
        }

        fn check_release(&self) -> Result<(), String> {
            let header = self.includes.iter().map(|folder| folder.join("spdk/version.h"));
            let text = header.filter_map(|path| fs::read_to_string(path).ok()).next();
            let text = text.ok_or(
                "the feature `spdk` found SPDK's libraries and not its header spdk/version.h",
            )?;
            let number = |name: &str| {
                let line = text.lines().find(|line| {
                    line.contains(&format!("{name}\t")) || line.contains(&format!("{name} "))
                })?;
                line.split_whitespace().nth(2)?.parse::<u32>().ok()
            };
            let release = number("SPDK_VERSION_MAJOR").zip(number("SPDK_VERSION_MINOR"));
            let (major, minor) =
                release.ok_or("spdk/version.h does not say SPDK_VERSION_MAJOR and _MINOR")?;
            let ((least, first), (most, last)) = RELEASES.into_inner();
            if (major, minor) < (least, first) {
                return Err(format!(
                    "the feature `spdk` needs SPDK {least}.{first:02} or later and found {major}.{minor:02}"
                ));
            }
            if (major, minor) > (most, last) {
                println!(
                    "cargo::warning=SPDK {major}.{minor:02} is later than {most}.{last:02}, the last release that this was tried with"
                );
            }
            Ok(())
        }

        fn declare(&self) -> Result<(), String> {
            let includes = self.includes.iter().map(|folder| format!("-I{}", folder.display()));
            let bindings = bindgen::builder()
                .header(format!("{FOLDER}/wrapper.h"))
                .clang_args(includes)
                .allowlist_function(FUNCTIONS)
                .allowlist_var(CONSTANTS)
                .prepend_enum_name(false)
                .generate_comments(false)
                .derive_debug(false)
                .layout_tests(false)
                .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()))
                .generate()
                .map_err(|error| {
                    format!("bindgen cannot read SPDK's headers (it needs libclang): {error}")
                })?;
            let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("spdk.rs");
            bindings.write_to_file(&out).map_err(|error| format!("{}: {error}", out.display()))
        }

        fn shim(&self) {
            cc::Build::new()
                .file(format!("{FOLDER}/shim.c"))
                .includes(&self.includes)
                .flag("-std=gnu11")
                .flag("-Wno-unused-parameter")
                .compile("udirect_spdk");
        }

        /// The archives whole where there are archives, shared objects otherwise: what registers itself is named by nobody.
        fn link(&self) -> Result<(), String> {
            for folder in &self.folders {
                println!("cargo::rustc-link-search=native={}", folder.display());
            }
            let is_static = self.libraries.iter().any(|name| self.archive(name).is_some());
            if !is_static {
                // rustc drops libraries that it sees no use of.
                println!("cargo::rustc-link-arg=-Wl,--no-as-needed");
            }
            for name in &self.libraries {
                match self.archive(name) {
                    Some(_) => {
                        println!("cargo::rustc-link-lib=static:+whole-archive,-bundle={name}");
                    }
                    None => println!("cargo::rustc-link-lib=dylib={name}"),
                }
            }
            for path in &self.archives {
                self.link_archive(path)?;
            }
            // The target's side of vfio-user, which nothing that we link calls, is not always installed.
            for name in self.system.iter().filter(|name| *name != "vfio-user") {
                println!("cargo::rustc-link-lib=dylib={name}");
            }
            Ok(())
        }

        /// An archive of another project, which the package may remember where it was built.
        fn link_archive(&self, path: &Path) -> Result<(), String> {
            let name = path.file_name().expect("an archive has a name");
            let beside =
                self.folders.iter().map(|folder| folder.join(name)).find(|path| path.exists());
            let path =
                Some(path.to_owned()).filter(|path| path.exists()).or(beside).ok_or_else(|| {
                    format!("{SYSTEM}.pc names {}, which does not exist", path.display())
                })?;
            let stem = path
                .file_stem()
                .and_then(|stem| stem.to_str())
                .and_then(|stem| stem.strip_prefix("lib"));
            let stem =
                stem.ok_or_else(|| format!("{} is not the name of a library", path.display()))?;
            let folder = path.parent().expect("a file lies in a folder");
            println!("cargo::rustc-link-search=native={}", folder.display());
            println!("cargo::rustc-link-lib=static:-bundle={stem}");
            Ok(())
        }

        fn archive(&self, name: &str) -> Option<PathBuf> {
            self.folders
                .iter()
                .map(|folder| folder.join(format!("lib{name}.a")))
                .find(|path| path.exists())
        }
    }

    /// Where pkg-config looks: as it is set, and below `SPDK_PREFIX`.
    fn search_path() -> Vec<PathBuf> {
        let prefix = env::var_os("SPDK_PREFIX").map(PathBuf::from);
        let below =
            |prefix: PathBuf| ["lib", "lib64"].map(|lib| prefix.join(lib).join("pkgconfig"));
        let path = env::var_os("PKG_CONFIG_PATH").unwrap_or_default();
        prefix.map(below).into_iter().flatten().chain(env::split_paths(&path)).collect()
    }

    /// What pkg-config says of a package. It is asked as a program: only so can it be given a path of its own.
    fn probe(name: &str, path: &[PathBuf]) -> Result<Package, String> {
        let joined = env::join_paths(path).map_err(|error| format!("PKG_CONFIG_PATH: {error}"))?;
        let program = env::var_os("PKG_CONFIG").unwrap_or_else(|| "pkg-config".into());
        let mut command = Command::new(&program);
        command.args(["--cflags-only-I", "--libs", name]).env("PKG_CONFIG_PATH", &joined);
        let output = command.output().map_err(|error| {
            format!("the feature `spdk` asks {} for SPDK: {error}", program.to_string_lossy())
        })?;
        if output.status.success() {
            return Ok(Package::parse(&String::from_utf8_lossy(&output.stdout)));
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let reason =
            said.lines().rfind(|line| line.contains("found")).unwrap_or("it failed").trim();
        Err(format!(
            "the feature `spdk` needs SPDK 24.09 or later, and pkg-config does not know {name} (it was looked for in {:?}, \
             from SPDK_PREFIX and PKG_CONFIG_PATH, and where pkg-config looks by itself): {reason}",
            joined.to_string_lossy()
        ))
    }

    #[derive(Default)]
    struct Package {
        includes: Vec<PathBuf>,
        folders: Vec<PathBuf>,
        libraries: Vec<String>,
        archives: Vec<PathBuf>,
    }

    impl Package {
        fn parse(flags: &str) -> Self {
            let mut package = Self::default();
            for flag in flags.split_whitespace() {
                match flag.split_at_checked(2) {
                    Some(("-I", folder)) => package.includes.push(folder.into()),
                    Some(("-L", folder)) => package.folders.push(folder.into()),
                    Some(("-l", name)) => package.libraries.push(name.into()),
                    _ if flag.ends_with(".a") => package.archives.push(flag.into()),
                    _ => {}
                }
            }
            package
        }
    }
}
