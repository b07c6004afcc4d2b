# A PostgreSQL for the controllers of curfew.nomad.hcl, where there is none: one server, whose data lies on one machine.
#
#   nomad node meta apply -node-id NODE curfew_database=yes       # which machine that is
#   nomad var put nomad/jobs/curfew-postgres password=SECRET
#   nomad job run curfew-postgres.nomad.hcl                       # not through Curfew, which needs it first
#
# It needs Debian's postgresql-15 on that machine, and raw_exec. For a database that outlives its machine use one that is made for it.
job "curfew-postgres" {
  datacenters = ["*"]
  type        = "service"

  constraint {
    attribute = "${meta.curfew_database}"
    value     = "yes"
  }

  group "postgres" {
    # It has a fast shutdown of its own; when the machine comes back, so does it.
    restart {
      attempts = 10
      interval = "10m"
      delay    = "5s"
      mode     = "delay"
    }

    task "postgres" {
      driver       = "raw_exec"
      kill_timeout = "20s"
      # Fast shutdown; SIGTERM would wait for every client.
      kill_signal = "SIGINT"

      env {
        BIN    = "/usr/lib/postgresql/15/bin"
        DATA   = "/var/lib/curfew-postgres"
        PORT   = "5432"
        LISTEN = "127.0.0.1"
        # PostgreSQL refuses to run as root.
        RUN_AS = "postgres"
      }

      template {
        data        = "PASSWORD={{ with nomadVar \"nomad/jobs/curfew-postgres\" }}{{ .password }}{{ end }}\n"
        destination = "secrets/password.env"
        env         = true
      }

      config {
        command = "/bin/sh"
        args = ["-c", <<-EOS
          set -eu
          umask 077
          mkdir -p "$DATA"
          as=""
          if [ "$(id -u)" = 0 ]; then
            chown "$RUN_AS" "$DATA"
            as="setpriv --reuid=$RUN_AS --regid=$RUN_AS --init-groups"
          fi
          cd "$DATA"
          if [ ! -s data/PG_VERSION ]; then
            printf '%s' "$PASSWORD" > password
            [ -z "$as" ] || chown "$RUN_AS" password
            $as "$BIN/initdb" --pgdata data --username curfew --pwfile password --auth scram-sha-256 --encoding UTF8
            rm password
          fi
          unset PASSWORD
          exec $as "$BIN/postgres" -D data -c "listen_addresses=$LISTEN" -c "port=$PORT" -c "unix_socket_directories=$DATA"
        EOS
        ]
      }

      resources {
        cpu    = 200
        memory = 256
      }
    }
  }
}
