// An application that uses the AWS SDK for Go v2 with its defaults: see ../../src/sdk.rs for the commands and what is
// printed.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

type answer struct {
	AccessKeyID string  `json:"access_key_id,omitempty"`
	Arn         string  `json:"arn,omitempty"`
	Error       string  `json:"error,omitempty"`
	Elapsed     float64 `json:"elapsed_seconds"`
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: identity <endpoint> | refresh <endpoint> <seconds> [<beyond>]")
		os.Exit(2)
	}
	started := time.Now()
	call := caller(os.Args[2])
	first := report(answerTo(call))
	if os.Args[1] != "refresh" || first.Error != "" {
		return
	}
	deadline, beyond := started.Add(seconds(os.Args[3])), started
	if 4 < len(os.Args) {
		beyond = started.Add(seconds(os.Args[4]))
	}
	for time.Now().Before(deadline) {
		time.Sleep(100 * time.Millisecond)
		next := answerTo(call)
		enough := next.Error != "" || !time.Now().Before(beyond)
		if enough && next.AccessKeyID != first.AccessKeyID {
			report(next)
			return
		}
	}
}

func seconds(text string) time.Duration {
	number, err := strconv.ParseFloat(text, 64)
	if err != nil {
		panic(err)
	}
	return time.Duration(number * float64(time.Second))
}

// caller returns a call by a client that is made at the first one and notes which key each request is signed with.
func caller(endpoint string) func() (answer, error) {
	var client *sts.Client
	var signedWith string
	note := middleware.FinalizeMiddlewareFunc("NoteKey", func(
		ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler,
	) (middleware.FinalizeOutput, middleware.Metadata, error) {
		if request, ok := in.Request.(*smithyhttp.Request); ok {
			_, rest, _ := strings.Cut(request.Header.Get("Authorization"), "Credential=")
			signedWith, _, _ = strings.Cut(rest, "/")
		}
		return next.HandleFinalize(ctx, in)
	})
	return func() (answer, error) {
		ctx := context.Background()
		if client == nil {
			loaded, err := config.LoadDefaultConfig(ctx)
			if err != nil {
				return answer{}, err
			}
			client = sts.NewFromConfig(loaded, func(options *sts.Options) {
				options.BaseEndpoint = aws.String(endpoint)
				options.APIOptions = append(options.APIOptions, func(stack *middleware.Stack) error {
					return stack.Finalize.Insert(note, "Signing", middleware.After)
				})
			})
		}
		given, err := client.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
		if err != nil {
			return answer{}, err
		}
		return answer{AccessKeyID: signedWith, Arn: aws.ToString(given.Arn)}, nil
	}
}

func answerTo(call func() (answer, error)) answer {
	started := time.Now()
	given, err := call()
	if err != nil {
		// Whatever an application would see is what the test is about.
		given = answer{Error: err.Error()}
	}
	given.Elapsed = time.Since(started).Seconds()
	return given
}

func report(given answer) answer {
	line, err := json.Marshal(given)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(line))
	return given
}
