//! `curfew token`: who may call. On the database itself, so that there can be a first one, or through a controller.

use std::sync::Arc;

use curfew_client::{Client, Scope, TokenRequest, TokenView};
use curfew_controller::{SystemClock, tokens};
use curfew_core::access::{Grant, NewToken};
use curfew_core::api::CreatedToken;
use curfew_core::operation::By;
use curfew_core::{Clock, Namespace};
use curfew_store::{Database, Store};
use secrecy::ExposeSecret;

use crate::args::{Output, Serve, Token, TokenCreate, TokenPlace};
use crate::config;
use crate::exit::{Exit, Usage};
use crate::job::who;
use crate::output::{json, line, note, table};
use crate::remote::Remote;

pub async fn run(remote: &Remote, command: Token) -> anyhow::Result<Exit> {
    match command {
        Token::Create(args) => {
            let place = Place::open(remote, &args.place).await?;
            let output = args.place.output;
            let created = place.create(args).await;
            place.close().await?;
            show(&created?, output)
        }
        Token::List(args) => {
            let place = Place::open(remote, &args).await?;
            let all = place.list().await;
            place.close().await?;
            list(&all?, args.output)
        }
        Token::Revoke(args) => {
            let place = Place::open(remote, &args.place).await?;
            let revoked = place.revoke(&args.id, args.who.reason).await;
            place.close().await?;
            let token = revoked?;
            if args.place.output.json {
                json(&token)?;
            } else {
                line(&format!("{} ({}) is revoked", token.name, token.id));
            }
            Ok(Exit::Done)
        }
    }
}

/// Where the tokens are asked for.
enum Place {
    Database(Arc<dyn Store>),
    Controller(Client),
}

impl Place {
    async fn open(remote: &Remote, place: &TokenPlace) -> anyhow::Result<Self> {
        if place.database.is_none() && place.config.is_none() {
            return Ok(Place::Controller(remote.client()?));
        }
        let config = config::load(&Serve { config: place.config.clone(), database: place.database.clone(), ..Serve::default() })?;
        let database = Database::parse(config.database.expose()).map_err(|e| Usage(e.to_string()))?;
        Ok(Place::Database(database.open().await?))
    }

    async fn close(&self) -> anyhow::Result<()> {
        if let Place::Database(store) = self {
            store.close().await?;
        }
        Ok(())
    }

    async fn create(&self, args: TokenCreate) -> anyhow::Result<CreatedToken> {
        let scope = |text: &String| {
            let known = Scope::ALL.map(Scope::as_str).join(", ");
            Scope::parse(text).ok_or_else(|| Usage(format!("there is no scope \"{text}\"; there are {known}")))
        };
        let scopes = args.scopes.iter().map(scope).collect::<Result<Vec<_>, _>>()?;
        let namespaces: Vec<Namespace> = args.namespaces.iter().map(|n| n.as_str().into()).collect();
        let who = who(args.who.reason);
        let store = match self {
            Place::Controller(client) => {
                let request = TokenRequest { name: args.name, scopes, namespaces, expires_in: args.expires_in, who };
                return Ok(client.create_token(&request).await?);
            }
            Place::Database(store) => store,
        };
        let at = SystemClock.now();
        let grant = Grant { scopes: scopes.into_iter().collect(), namespaces: namespaces.into_iter().collect() };
        let by = who.actor.unwrap_or_else(|| "curfew token".into());
        let new = NewToken { name: args.name, grant, by, at, expires_at: args.expires_in.map(|d| at + d) };
        let (token, text) = tokens::create(&**store, new, who.reason).await?;
        Ok(CreatedToken { view: token.into(), token: text.into() })
    }

    async fn list(&self) -> anyhow::Result<Vec<TokenView>> {
        Ok(match self {
            Place::Controller(client) => client.tokens().await?,
            Place::Database(store) => store.tokens().await?.into_iter().map(TokenView::from).collect(),
        })
    }

    async fn revoke(&self, id: &str, reason: Option<String>) -> anyhow::Result<TokenView> {
        let who = who(reason);
        Ok(match self {
            Place::Controller(client) => client.revoke_token(id, who).await?,
            Place::Database(store) => {
                let actor = who.actor.unwrap_or_else(|| "curfew token".into());
                tokens::revoke(&**store, id, By { actor, reason: who.reason, at: SystemClock.now() }).await?.into()
            }
        })
    }
}

/// The token alone on standard output: `CURFEW_TOKEN=$(curfew token create …)`.
fn show(created: &CreatedToken, output: Output) -> anyhow::Result<Exit> {
    if output.json {
        json(created)?;
    } else {
        let view = &created.view;
        note(&format!("{} ({}): {}. It is shown this once:", view.name, view.id, what(view)));
        line(created.token.expose_secret());
    }
    Ok(Exit::Done)
}

fn what(token: &TokenView) -> String {
    let scopes: Vec<&str> = token.scopes.iter().map(|s| s.as_str()).collect();
    let namespaces: Vec<&str> = token.namespaces.iter().map(Namespace::as_str).collect();
    let place = if namespaces.is_empty() { String::new() } else { format!(" in {}", namespaces.join(", ")) };
    format!("{}{place}", scopes.join(", "))
}

fn list(all: &[TokenView], output: Output) -> anyhow::Result<Exit> {
    if output.json {
        json(&all)?;
        return Ok(Exit::Done);
    }
    if all.is_empty() {
        note("no tokens");
        return Ok(Exit::Done);
    }
    let now = SystemClock.now();
    let rows = all.iter().map(|t| {
        let state = match (&t.revoked, t.expires_at) {
            (Some(by), _) => format!("revoked {}", crate::op::by(by)),
            (None, Some(at)) if at <= now => format!("expired at {at}"),
            (None, Some(at)) => format!("until {at}"),
            (None, None) => "valid".to_owned(),
        };
        [t.id.clone(), t.name.clone(), what(t), t.created_by.clone(), state]
    });
    line(&table(["ID", "NAME", "MAY", "MADE BY", "STATE"], rows.collect()));
    Ok(Exit::Done)
}
