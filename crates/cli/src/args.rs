//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use curfew_core::{OpId, Timestamp};

use crate::remote::Remote;

/// Stops and drains on HashiCorp Nomad that end when they were promised to.
#[derive(Parser)]
#[command(name = "curfew", version, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    pub remote: Remote,
    #[command(flatten)]
    pub log: Log,
    #[command(subcommand)]
    pub command: Command,
}

/// Reaps what is left over on a Nomad cluster, and nothing else.
#[derive(Parser)]
#[command(name = "curfew-gc", version, max_term_width = 110)]
pub struct CliGc {
    /// Learn of operations from the controller there.
    #[arg(long, env = "CURFEW_ADDR", value_name = "URL")]
    addr: Option<String>,
    #[command(flatten)]
    log: Log,
    #[command(flatten)]
    gc: Gc,
}

impl From<CliGc> for Cli {
    fn from(cli: CliGc) -> Self {
        Self { remote: Remote { addr: cli.addr, profile: None }, log: cli.log, command: Command::Gc(cli.gc) }
    }
}

#[derive(Args)]
pub struct Log {
    /// What is logged to standard error, as in `info` or `curfew_controller=debug`.
    #[arg(long = "log", global = true, env = "CURFEW_LOG", value_name = "FILTER")]
    pub filter: Option<String>,
    /// How it is logged.
    #[arg(long, global = true, env = "CURFEW_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand)]
pub enum Command {
    /// Show the whole story on an embedded cluster (or on NOMAD_ADDR), in about a minute.
    Demo(Demo),
    /// Run an embedded cluster and a controller until Ctrl-C.
    Dev(Dev),
    /// Run the controller.
    Serve(Serve),
    /// Submit, plan and stop jobs.
    #[command(subcommand)]
    Job(Job),
    /// Empty nodes, or end that.
    #[command(subcommand)]
    Node(crate::drain::args::Node),
    /// Empty whole datacenters, or end that.
    #[command(subcommand)]
    Datacenter(crate::drain::args::Datacenter),
    /// Look at operations, and step in.
    #[command(subcommand)]
    Op(Op),
    /// Pause and resume whole kinds of operations, on every controller.
    #[command(subcommand)]
    Kind(KindCommand),
    /// What waits and what runs.
    #[command(subcommand)]
    Queue(Queue),
    /// Read the audit trail.
    Audit(Audit),
    /// The kill clocks that are armed: which task gets SIGKILL when, and why.
    Clocks(Clocks),
    /// Find what is left over on the cluster, and reap it.
    Gc(Gc),
    /// Who may call the RPC: make, list and revoke tokens.
    #[command(subcommand)]
    Token(Token),
    /// Ask the controller how it is.
    Status(Output),
    /// Check whether Curfew can keep its promises on this Nomad, and say what to do.
    Doctor(Doctor),
    /// Check the configuration, or print one with every key.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the description of the RPC (OpenAPI 3.1).
    Openapi,
    /// Print completions for a shell.
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write the manual pages of every command into a folder.
    Man {
        /// It is made when it is not there.
        dir: PathBuf,
    },
}

impl Command {
    /// What is logged when nobody says: services speak, commands only warn.
    pub fn logs_at(&self) -> &'static str {
        match self {
            Command::Serve(_) => "info",
            _ => "warn",
        }
    }
}

#[derive(Args)]
pub struct Demo {}

#[derive(Args)]
pub struct Dev {
    /// Only the cluster, without a controller.
    #[arg(long)]
    pub cluster_only: bool,
    /// The cluster's HTTP port; the next free one when it is taken.
    #[arg(long, default_value_t = 4646)]
    pub port: u16,
    /// How many nodes, spread over the datacenters in turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub nodes: u16,
    /// A datacenter; may be given several times.
    #[arg(long = "datacenter", value_name = "NAME", default_values = ["dc1", "dc2"])]
    pub datacenters: Vec<String>,
    /// What the nodes cut kill_timeout to. A real client's default is 30s.
    #[arg(long, default_value = "8760h", value_parser = duration)]
    pub max_kill_timeout: Duration,
    /// Where allocations and the controller's database live; a temporary folder, removed at the end, without it.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Refuse calls without a token; a management token is printed.
    #[arg(long)]
    pub acl: bool,
    #[command(flatten)]
    pub tls: DevTls,
    #[command(flatten)]
    pub serve: Serve,
}

/// HTTPS for the embedded cluster.
#[derive(Args, Clone)]
pub struct DevTls {
    /// The cluster's certificate (PEM): HTTPS instead of HTTP.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The key of --tls-cert (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Demand a client certificate signed by this CA (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_ca: Option<PathBuf>,
}

#[derive(Args, Clone, Default)]
pub struct Serve {
    /// A TOML file; see docs/configuration.md.
    #[arg(long, env = "CURFEW_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where operations and clocks are written down: sqlite:PATH, or postgres://USER@HOST/DATABASE.
    #[arg(long, value_name = "URL")]
    pub database: Option<String>,
    /// Where the RPC listens [default: 127.0.0.1:4690].
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
}

#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Read it as `serve` would, environment included, and say what is wrong with it. Connects to nothing.
    Check(Serve),
    /// Print a file with every key, its meaning and its default.
    Default,
}

#[derive(Args)]
pub struct Doctor {
    /// A TOML file; see docs/configuration.md.
    #[arg(long, env = "CURFEW_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Clone)]
pub struct Gc {
    /// Act without asking.
    #[arg(long)]
    pub yes: bool,
    /// Only show what it would do.
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
    /// One pass (the default).
    #[arg(long, conflicts_with = "every")]
    pub once: bool,
    /// A pass, and another one so long after its end, until it is stopped; needs --yes or --dry-run.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub every: Option<Duration>,
    /// On top of a clock that no database explains, and how long an orphan must have been seen [default: gc_grace, 15m].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub grace: Option<Duration>,
    /// How long a dead job is kept before it is purged [default: gc_retention, 168h].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub retention: Option<Duration>,
    /// More candidates of a verdict than this: none of them is touched (exit code 4) [default: gc_cap, 100].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub cap: Option<u32>,
    /// However many there are.
    #[arg(long, conflicts_with = "cap")]
    pub no_cap: bool,
    /// What is done about a verdict, as in orphan=act: off, report or act. May be given several times.
    #[arg(long = "verdict", value_name = "VERDICT=MODE")]
    pub verdicts: Vec<String>,
    /// Only this namespace; may be given several times [default: all].
    #[arg(long = "namespace", value_name = "NAME")]
    pub namespaces: Vec<String>,
    /// Where sightings are remembered from one run to the next.
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// A TOML file; see docs/configuration.md.
    #[arg(long, env = "CURFEW_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Learn of operations from this database, beside its controllers.
    #[arg(long, value_name = "URL")]
    pub database: Option<String>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Clone, Copy)]
pub struct Output {
    /// Print JSON and nothing else on standard output.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Clone)]
pub struct Who {
    /// Why; kept in the audit trail.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

#[derive(Args, Clone)]
pub struct Waiting {
    /// Wait until it has ended (the default).
    #[arg(long, conflicts_with = "detach")]
    pub wait: bool,
    /// Do not wait; print the operation's id.
    #[arg(long)]
    pub detach: bool,
    /// Give up waiting after this long (exit code 5; the operation goes on).
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub timeout: Option<Duration>,
}

#[derive(Subcommand)]
pub enum Job {
    /// Submit a job, with its kill_timeout raised and Curfew keeping the clock.
    Run(JobRun),
    /// Show what a submit would change, and Nomad's own plan.
    Plan(JobSpecArgs),
    /// Stop a job: SIGTERM now, SIGKILL when its time is over.
    Stop(JobStop),
    /// Show a job: its deployment, its allocations, the clocks of its tasks, what crashes, what is under way.
    Status(JobStatus),
    /// List jobs that were submitted through Curfew.
    List(JobList),
    /// List a job's versions: what came of each, and who registered it.
    History(JobStatus),
    /// Promote the canaries of the deployment that runs.
    Promote(JobSteer),
    /// Fail the deployment that runs; Nomad goes back to the last stable version where the job says auto_revert.
    Fail(JobSteer),
    /// Register an older version again, and follow what comes of it.
    Revert(JobRevert),
}

#[derive(Args)]
pub struct JobSteer {
    /// The job's id.
    pub id: String,
    /// The job's namespace.
    #[arg(long, env = "NOMAD_NAMESPACE")]
    pub namespace: Option<String>,
    #[command(flatten)]
    pub who: Who,
    #[command(flatten)]
    pub waiting: Waiting,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args)]
pub struct JobRevert {
    #[command(flatten)]
    pub job: JobSteer,
    /// One that Nomad still knows; curfew job history lists them.
    pub version: u64,
}

#[derive(Args)]
pub struct JobStatus {
    /// The job's id.
    pub id: String,
    /// The job's namespace.
    #[arg(long, env = "NOMAD_NAMESPACE")]
    pub namespace: Option<String>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args)]
pub struct JobList {
    /// Those that were not submitted through Curfew, too.
    #[arg(long)]
    pub all: bool,
    /// Only those whose ids begin so.
    pub prefix: Option<String>,
    /// Only of this namespace.
    #[arg(long, env = "NOMAD_NAMESPACE")]
    pub namespace: Option<String>,
    #[arg(long, default_value_t = 1000)]
    pub limit: usize,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args)]
pub struct Clocks {
    /// Only of this job.
    #[arg(long)]
    pub job: Option<String>,
    /// Only of this namespace.
    #[arg(long)]
    pub namespace: Option<String>,
    #[arg(long, default_value_t = 100)]
    pub limit: usize,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Subcommand)]
pub enum Token {
    /// Make a token and print it, this once.
    Create(TokenCreate),
    /// List tokens, those that ended too.
    List(TokenPlace),
    /// From now on a token proves nothing.
    Revoke(TokenRevoke),
}

/// Without one of these the controller is asked, which needs a token with the scope admin.
#[derive(Args)]
pub struct TokenPlace {
    /// On this database itself: so the first token is made. With SQLite no controller may have it open.
    #[arg(long, value_name = "URL")]
    pub database: Option<String>,
    /// On the database of this configuration.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args)]
pub struct TokenCreate {
    /// Who is to have it: letters, digits, dots, dashes and underscores.
    pub name: String,
    /// read, submit, stop, drain, gc or admin; may be given several times.
    #[arg(long = "scope", value_name = "SCOPE", required = true, value_delimiter = ',')]
    pub scopes: Vec<String>,
    /// Only for jobs of this namespace; may be given several times. Not with drain, gc and admin.
    #[arg(long = "namespace", value_name = "NAME", value_delimiter = ',')]
    pub namespaces: Vec<String>,
    /// How long it is valid; until it is revoked without it.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub expires_in: Option<Duration>,
    #[command(flatten)]
    pub who: Who,
    #[command(flatten)]
    pub place: TokenPlace,
}

#[derive(Args)]
pub struct TokenRevoke {
    /// Its id, as the list shows it.
    pub id: String,
    #[command(flatten)]
    pub who: Who,
    #[command(flatten)]
    pub place: TokenPlace,
}

#[derive(Args)]
pub struct JobSpecArgs {
    /// A file in HCL or in Nomad's API JSON; - for standard input.
    #[arg(value_name = "SPEC")]
    pub spec: PathBuf,
    /// The namespace of a specification that names none.
    #[arg(long, env = "NOMAD_NAMESPACE")]
    pub namespace: Option<String>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args)]
pub struct JobRun {
    #[command(flatten)]
    pub spec: JobSpecArgs,
    /// Not done when Nomad has it: follow its deployment, and the one of an auto-revert, to the end.
    #[arg(long)]
    pub watch: bool,
    /// Only when this is the job's JobModifyIndex in Nomad (curfew job plan shows it); 0: only when there is no such job.
    #[arg(long, value_name = "INDEX")]
    pub check_index: Option<u64>,
    #[command(flatten)]
    pub who: Who,
    #[command(flatten)]
    pub waiting: Waiting,
}

#[derive(Args)]
#[group(id = "which", required = true, multiple = false, args = ["id", "all"])]
pub struct JobStop {
    /// The job's id.
    pub id: Option<String>,
    /// Every job that was submitted through Curfew; asks first.
    #[arg(long)]
    pub all: bool,
    /// With --all: only jobs whose ids begin so.
    #[arg(long, requires = "all")]
    pub prefix: Option<String>,
    /// Do not ask.
    #[arg(long, short = 'y', requires = "all")]
    pub yes: bool,
    /// And remove the job from Nomad when nothing of it lives: what `nomad job stop -purge` does, without leaving processes behind.
    #[arg(long)]
    pub purge_when_dead: bool,
    /// Between a task's SIGTERM and its SIGKILL; without it the task's own stop timeout, else JOB_STOP_TIMEOUT (30s).
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub stop_timeout: Option<Duration>,
    /// Skip the shutdown_delay of its groups and tasks.
    #[arg(long)]
    pub no_shutdown_delay: bool,
    /// The job's namespace.
    #[arg(long, env = "NOMAD_NAMESPACE")]
    pub namespace: Option<String>,
    /// Exit with 3 when SIGKILL was needed.
    #[arg(long)]
    pub fail_on_kill: bool,
    #[command(flatten)]
    pub who: Who,
    #[command(flatten)]
    pub waiting: Waiting,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Subcommand)]
pub enum Op {
    /// List operations, newest first.
    List(OpList),
    /// Show one operation.
    Show(OpShow),
    /// Follow an operation until it has ended.
    Watch(OpWatch),
    /// Cancel one: at once when it never began; else its next step undoes what can be undone and ends it.
    Cancel(Intervene),
    /// Give the tasks of a stop more time.
    Extend(Extend),
    /// Send SIGKILL to the tasks of a stop now.
    KillNow(Intervene),
    /// Take one away from the controller that works on it, or wake one that waits.
    Release(Intervene),
    /// Try one again that failed or was cancelled.
    Retry(Intervene),
    /// Begin no further step of it. The clocks of a stop run on.
    Pause(Intervene),
    /// End its pause.
    Resume(Intervene),
}

#[derive(Args)]
pub struct Intervene {
    pub id: OpId,
    #[command(flatten)]
    pub who: Who,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args)]
#[group(id = "far", required = true, multiple = false, args = ["by", "until"])]
pub struct Extend {
    pub id: OpId,
    /// So much later than its deadline, or than now when that has passed.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub by: Option<Duration>,
    /// Until an instant, as in 2026-11-21T14:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub until: Option<Timestamp>,
    #[command(flatten)]
    pub who: Who,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Subcommand)]
pub enum KindCommand {
    /// List the kinds: who paused which, and which controller keeps the clocks.
    List(Output),
    /// Begin nothing of a kind on any controller until it is resumed; what runs finishes its step.
    Pause(KindPause),
    /// Begin operations of a kind again.
    Resume(KindResume),
}

#[derive(Args)]
pub struct KindPause {
    /// submit, stop, or kill: then no task is killed, by no controller.
    #[arg(value_name = "KIND")]
    pub kind: String,
    /// Needed to pause kill.
    #[arg(long)]
    pub yes_really: bool,
    #[command(flatten)]
    pub who: Who,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args)]
pub struct KindResume {
    #[arg(value_name = "KIND")]
    pub kind: String,
    #[command(flatten)]
    pub who: Who,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Subcommand)]
pub enum Queue {
    /// How many operations are in which state, how old the oldest is, and who works on what.
    Status(Output),
    /// Exit with 0 when no controller works on anything, else list who holds what and exit with 1.
    ConfirmDrained(Output),
}

#[derive(Args)]
pub struct OpList {
    /// Only of this kind: submit, rollout, deployment, stop, drain_node, drain_datacenter, undrain.
    #[arg(long)]
    pub kind: Option<String>,
    /// Only in this state: queued, running, waiting, paused, succeeded, failed, cancelled.
    #[arg(long)]
    pub state: Option<String>,
    /// Only of this job.
    #[arg(long)]
    pub job: Option<String>,
    /// The job's namespace.
    #[arg(long, requires = "job")]
    pub namespace: Option<String>,
    /// Only those that this operation asked for.
    #[arg(long, value_name = "ID")]
    pub parent: Option<OpId>,
    #[arg(long, default_value_t = 30)]
    pub limit: usize,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args)]
pub struct OpShow {
    pub id: OpId,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args)]
pub struct OpWatch {
    pub id: OpId,
    /// Exit with 3 when SIGKILL was needed.
    #[arg(long)]
    pub fail_on_kill: bool,
    /// Give up waiting after this long (exit code 5; the operation goes on).
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub timeout: Option<Duration>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args)]
pub struct Audit {
    /// Only of this operation.
    #[arg(long)]
    pub op: Option<OpId>,
    /// Only rows of this long ago or younger.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub since: Option<Duration>,
    /// Print what comes, too, until Ctrl-C. With --json one row a line.
    #[arg(long)]
    pub follow: bool,
    #[command(flatten)]
    pub output: Output,
}

fn duration(text: &str) -> Result<Duration, curfew_core::duration::BadDuration> {
    curfew_core::duration::parse(text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
        super::CliGc::command().debug_assert();
    }
}
