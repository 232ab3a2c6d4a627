// Command ipvs-manager manages Linux IPVS on any number of directors from a
// replicated store. One binary has three roles, chosen by --server_type:
//
//	server    the store, the HTTP API and web page, health checks, the agents' port
//	agent     programs this host's kernel with what the servers hold
//	singleon  both in one process, for one machine
//
// The commands keygen, agent-cert, operator-cert and server-cert make keys and
// certificates.
//
// Run it with --help for the flags.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once: the first gives the default
	// handling back.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is main with its world passed in. It returns the exit code: 0 after a
// requested stop, 1 for a failure, 2 for a command line that cannot be used.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && commands[args[0]] != nil {
		return runCommand(args[0], args[1:], stdout, stderr)
	}
	cfg, err := parseFlags(args)
	switch {
	case errors.Is(err, errHelp):
		fmt.Fprint(stdout, usage())
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "ipvs-manager: %v\n", err)
		return 2
	case cfg.version:
		fmt.Fprintf(stdout, "ipvs-manager %s\n", version())
		return 0
	}
	if err := checkExposure(cfg, args); err != nil {
		fmt.Fprintf(stderr, "ipvs-manager: %v\n", err)
		return 2
	}
	log := newLogger(cfg.logLevel, stderr)
	defer func() { _ = log.Sync() }() // a terminal cannot be synced, and says so

	role := runServer
	if cfg.role == roleAgent {
		role = runAgent
	}
	if err := role(ctx, cfg, log, stdout); err != nil {
		fmt.Fprintf(stderr, "ipvs-manager: %v\n", err)
		return 1
	}
	return 0
}

func newLogger(level zapcore.Level, w io.Writer) *zap.Logger {
	enc := zap.NewProductionEncoderConfig()
	enc.EncodeTime = zapcore.ISO8601TimeEncoder
	enc.EncodeLevel = zapcore.CapitalLevelEncoder
	enc.EncodeDuration = zapcore.StringDurationEncoder
	return zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(enc), zapcore.Lock(zapcore.AddSync(w)), level))
}
