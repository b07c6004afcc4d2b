//! Certificates as a Nomad cluster has them: a CA of its own, and the role and region as the name on them.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// The name on the agents' certificate, besides `localhost`: none of their addresses.
pub const SERVER: &str = "server.global.nomad";

/// PEM files in a folder of their own.
pub struct Certificates {
    dir: TempDir,
}

impl Certificates {
    pub fn new() -> Self {
        let made = Self { dir: TempDir::with_prefix("curfew-test-tls-").unwrap() };
        for ca in ["ca", "other-ca"] {
            let mut params = CertificateParams::new(vec![]).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, ca);
            let key = KeyPair::generate().unwrap();
            made.write(ca, &params.self_signed(&key).unwrap().pem());
            let issuer = Issuer::new(params, key);
            let leaves: &[(&str, &[&str])] = match ca {
                "ca" => &[("server", &[SERVER, "client.global.nomad", "localhost"]), ("client", &["cli.global.nomad"])],
                _ => &[("other-client", &["cli.global.nomad"])],
            };
            for (name, names) in leaves {
                let key = KeyPair::generate().unwrap();
                let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
                let leaf = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
                made.write(name, &leaf.pem());
                made.write(&format!("{name}-key"), &key.serialize_pem());
            }
        }
        made
    }

    fn write(&self, name: &str, pem: &str) {
        std::fs::write(self.path(name), pem).unwrap();
    }

    /// `ca`, `server`, `client`, `other-ca`, `other-client`; `…-key` for the key of one.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.pem"))
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        read(&self.path(name))
    }
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}
