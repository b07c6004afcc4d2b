//! TLS as an agent with `verify_https_client` has it, and what Curfew's gateway says when something does not fit.

use std::path::PathBuf;

use curfew_nomad::{Error, Nomad, NomadConfig};
use curfew_tests::certificates::{Certificates, SERVER};

use crate::on::On;

fn certificates(on: &On) -> &Certificates {
    on.cluster.api.access.certificates.as_deref().unwrap()
}

/// By its address, for which its certificate is not.
fn gateway(on: &On, variables: &[(&str, &str)]) -> Nomad {
    let file = |name: &str| certificates(on).path(name);
    let value = |name: &str| {
        let (_, value) = variables.iter().find(|(n, _)| *n == name)?;
        let path: PathBuf = file(value);
        Some(if name == "NOMAD_TLS_SERVER_NAME" { (*value).to_owned() } else { path.display().to_string() })
    };
    let addr = on.cluster.addr().replace("localhost", "127.0.0.1");
    let env = |name: &str| if name == "NOMAD_ADDR" { Some(addr.clone()) } else { value(name) };
    Nomad::new(NomadConfig::from_env(env).unwrap()).unwrap()
}

const CA: (&str, &str) = ("NOMAD_CACERT", "ca");
const CERT: (&str, &str) = ("NOMAD_CLIENT_CERT", "client");
const KEY: (&str, &str) = ("NOMAD_CLIENT_KEY", "client-key");
const NAME: (&str, &str) = ("NOMAD_TLS_SERVER_NAME", SERVER);

pub async fn the_gateway_shows_its_certificate(on: On) {
    let nomad = gateway(&on, &[CA, CERT, KEY, NAME]);
    assert!(nomad.leader().await.unwrap().contains(':'));
    assert_eq!(nomad.nodes(None).await.unwrap().len(), 1);
    let mut events = nomad.events(None).await.unwrap();
    events.next().await.unwrap();
}

async fn says(on: &On, variables: &[(&str, &str)]) -> String {
    // A server that refuses a certificate closes at once, and its reset may overtake its alert: then nothing says why.
    for _ in 0..20 {
        match gateway(on, variables).leader().await {
            Err(e @ Error::Unreachable { .. }) => return e.to_string(),
            Err(Error::Interrupted { .. }) => {}
            other => panic!("{variables:?}: {other:?}"),
        }
    }
    panic!("{variables:?}: cut off each time")
}

pub async fn what_is_wrong_names_what_to_mend(on: On) {
    let wrong_ca = says(&on, &[("NOMAD_CACERT", "other-ca"), CERT, KEY, NAME]).await;
    assert!(wrong_ca.contains("not trusted") && wrong_ca.contains("NOMAD_CACERT"), "{wrong_ca}");
    let no_ca = says(&on, &[CERT, KEY]).await;
    assert!(no_ca.contains("not trusted") && no_ca.contains("NOMAD_CACERT"), "{no_ca}");
    let no_name = says(&on, &[CA, CERT, KEY]).await;
    assert!(no_name.contains("another name") && no_name.contains("NOMAD_TLS_SERVER_NAME"), "{no_name}");
    let other = ("NOMAD_TLS_SERVER_NAME", "server.eu.nomad");
    let wrong_name = says(&on, &[CA, CERT, KEY, other]).await;
    assert!(wrong_name.contains("another name") && wrong_name.contains("NOMAD_TLS_SERVER_NAME"), "{wrong_name}");
    let no_cert = says(&on, &[CA, NAME]).await;
    assert!(no_cert.contains("NOMAD_CLIENT_CERT") && no_cert.contains("NOMAD_CLIENT_KEY"), "{no_cert}");
    let wrong_cert =
        says(&on, &[CA, NAME, ("NOMAD_CLIENT_CERT", "other-client"), ("NOMAD_CLIENT_KEY", "other-client-key")]).await;
    assert!(wrong_cert.contains("NOMAD_CLIENT_CERT") && wrong_cert.contains("NOMAD_CLIENT_KEY"), "{wrong_cert}");
}
