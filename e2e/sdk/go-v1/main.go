// An application that uses the AWS SDK for Go v1 with its defaults: see ../../src/sdk.rs for the commands and what is
// printed.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go/aws"
	"github.com/aws/aws-sdk-go/aws/request"
	"github.com/aws/aws-sdk-go/aws/session"
	"github.com/aws/aws-sdk-go/service/sts"
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
	var client *sts.STS
	var signedWith string
	return func() (answer, error) {
		if client == nil {
			made, err := session.NewSession()
			if err != nil {
				return answer{}, err
			}
			client = sts.New(made, aws.NewConfig().WithEndpoint(endpoint))
			client.Handlers.Send.PushFront(func(sent *request.Request) {
				_, rest, _ := strings.Cut(sent.HTTPRequest.Header.Get("Authorization"), "Credential=")
				signedWith, _, _ = strings.Cut(rest, "/")
			})
		}
		given, err := client.GetCallerIdentity(&sts.GetCallerIdentityInput{})
		if err != nil {
			return answer{}, err
		}
		return answer{AccessKeyID: signedWith, Arn: aws.StringValue(given.Arn)}, nil
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
