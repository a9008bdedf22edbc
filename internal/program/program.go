// SPDX-License-Identifier: Apache-2.0

// Package program is what the daemons share: settings from flags, environment
// and file, logging, and ending on a signal.
package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"github.com/hawser-mesh/hawser/internal/version"
)

// Options are the flags that every daemon has.
type Options struct {
	ConfigFile string
	LogLevel   string
	LogFormat  string
}

// Bind adds the flags, and makes each flag of the command settable by the
// environment (PREFIX_FLAG_NAME) and by the file of --config (flag-name: value).
// A flag wins over the environment, that over the file, that over the default.
// A key in the file that is no flag is an error.
func (o *Options) Bind(cmd *cobra.Command, prefix string) {
	f := cmd.Flags()
	f.StringVar(&o.ConfigFile, "config", "", "YAML file with settings, each named like its flag")
	f.StringVar(&o.LogLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&o.LogFormat, "log-format", "text", "text or json")
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.Version = version.String()
	cmd.Args = cobra.NoArgs
	inner := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if err := o.fill(cmd.Flags(), prefix); err != nil {
			return err
		}
		if inner != nil {
			return inner(cmd, args)
		}
		return nil
	}
}

// fill sets what was not given as a flag.
func (o *Options) fill(flags *pflag.FlagSet, prefix string) error {
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		name := prefix + "_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if value, ok := os.LookupEnv(name); ok && !f.Changed {
			if err := flags.Set(f.Name, value); err != nil {
				errs = append(errs, fmt.Errorf("environment %s: %w", name, err))
			}
		}
	})
	if o.ConfigFile != "" {
		errs = append(errs, fillFromFile(flags, o.ConfigFile))
	}
	return errors.Join(errs...)
}

func fillFromFile(flags *pflag.FlagSet, path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	settings := map[string]any{}
	if err := yaml.Unmarshal(raw, &settings); err != nil {
		return fmt.Errorf("--config %s: %w", path, err)
	}
	var errs []error
	for key, value := range settings {
		f := flags.Lookup(key)
		if f == nil || key == "config" || key == "help" {
			errs = append(errs, fmt.Errorf("--config %s: unknown setting %q", path, key))
			continue
		}
		if f.Changed {
			continue
		}
		for _, text := range texts(value) {
			if err := flags.Set(key, text); err != nil {
				errs = append(errs, fmt.Errorf("--config %s: %s: %w", path, key, err))
			}
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

func texts(value any) []string {
	list, ok := value.([]any)
	if !ok {
		return []string{fmt.Sprint(value)}
	}
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = fmt.Sprint(v)
	}
	return out
}

// Logger makes the logger that the options ask for.
func (o *Options) Logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.LogLevel)); err != nil {
		return nil, fmt.Errorf("--log-level %q: must be debug, info, warn or error", o.LogLevel)
	}
	opts := &slog.HandlerOptions{Level: level}
	switch o.LogFormat {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, fmt.Errorf("--log-format %q: must be text or json", o.LogFormat)
}

// Main runs a daemon's command until it ends or a signal asks it to, and
// returns the exit code: 0, 1 for an error, 2 for wrong flags.
func Main(cmd *cobra.Command) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	usage := false
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		usage = true
		return err
	})
	err := cmd.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case usage:
		fmt.Fprintf(os.Stderr, "error: %v\nsee: %s --help\n", err, cmd.Name())
		return 2
	}
	fmt.Fprintf(os.Stderr, "error: %s\n", strings.ReplaceAll(err.Error(), "\n", "\n       "))
	return 1
}
