// The probe is the least patient client there can be: it asks for credentials in its first instruction, once, and
// gives up after a second without a connection, or after one without a byte on it: as in SDKs, each has a timeout of
// its own. What became of it is the termination message of its container.
//
//	probe once [flags]        ask once
//	probe loop [flags]        ask again and again until SIGTERM, and count
//	probe listens [flags]     wait until somebody listens there, for others that ask in this container
//	probe get <url>           fetch anything else, as an application that looks for the metadata service
//	probe forge <address>     claim to be that address, on its own network, until it is told to end
//	probe wait                do nothing, for others to run the above in this container
//	probe end                 tell the first process of this container to end
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// An answer, or what came instead of one.
type answer struct {
	Status      int     `json:"status"`
	Code        string  `json:"code,omitempty"`
	AccessKeyID string  `json:"access_key_id,omitempty"`
	Error       string  `json:"error,omitempty"`
	StartedAt   float64 `json:"started_at"`
	// Until the connection was there, and until the first byte of the answer; zero where there was none.
	Connected float64 `json:"connected_seconds,omitempty"`
	FirstByte float64 `json:"first_byte_seconds,omitempty"`
	Seconds   float64 `json:"seconds"`
}

// What a loop has seen.
type summary struct {
	Answers int `json:"answers"`
	Failed  int `json:"failed"`
	// The first of those that got no answer, or not all of one, and of those that got another.
	Failures []answer       `json:"failures"`
	Refusals []answer       `json:"refusals"`
	Keys     map[string]int `json:"keys"`
	// The one that took the longest, whatever came of it.
	Slowest answer  `json:"slowest"`
	Silence float64 `json:"longest_gap_seconds"`
}

type request struct {
	url       string
	token     string
	tokenFile string
	source    string
	patience  time.Duration
	listening bool
	keep      bool
}

func main() {
	if len(os.Args) < 2 {
		fail("usage: probe once|loop|listens|get|forge|wait|end")
	}
	switch command, arguments := os.Args[1], os.Args[2:]; command {
	case "once":
		asked := parse(arguments)
		if asked.listening {
			untilItListens(asked.url)
		}
		report(ask(asked))
	case "loop":
		loop(parse(arguments))
	case "listens":
		untilItListens(parse(arguments).url)
	case "get":
		report(ask(request{url: arguments[0], patience: 2 * time.Second}))
	case "forge":
		forge(arguments[0])
	case "wait":
		<-ended()
	case "end":
		if err := syscall.Kill(1, syscall.SIGTERM); err != nil {
			fail(err.Error())
		}
	default:
		fail("unknown command " + command)
	}
}

func parse(arguments []string) request {
	asked := request{}
	flags := flag.NewFlagSet("probe", flag.ExitOnError)
	flags.StringVar(&asked.url, "url", os.Getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI"), "where to ask")
	flags.StringVar(&asked.tokenFile, "token-file", os.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"), "")
	flags.StringVar(&asked.token, "token", "", "a token, in the place of the file's")
	flags.StringVar(&asked.source, "source", "", "the address to ask from")
	flags.DurationVar(&asked.patience, "patience", time.Second, "to connect, and then for each read")
	flags.BoolVar(&asked.listening, "once-it-listens", false, "wait until somebody listens there")
	flags.BoolVar(&asked.keep, "keep-token", false, "read the token once for all requests")
	_ = flags.Parse(arguments)
	if asked.keep {
		content, err := os.ReadFile(asked.tokenFile)
		if err != nil {
			fail(err.Error())
		}
		asked.token = string(content)
	}
	return asked
}

func ask(asked request) answer {
	started := time.Now()
	given := answer{StartedAt: float64(started.UnixMicro()) / 1e6}
	if err := exchange(asked, started, &given); err != nil {
		given.Error = err.Error()
	}
	given.Seconds = time.Since(started).Seconds()
	return given
}

func exchange(asked request, started time.Time, given *answer) error {
	if asked.url == "" {
		return errors.New("nothing says where to ask: the pod was not injected")
	}
	target, err := url.Parse(asked.url)
	if err != nil {
		return err
	}
	token := asked.token
	if token == "" && asked.tokenFile != "" {
		content, err := os.ReadFile(asked.tokenFile)
		if err != nil {
			return err
		}
		token = string(content)
	}
	dialer := net.Dialer{Timeout: asked.patience}
	if asked.source != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(asked.source)}
	}
	host := target.Host
	if target.Port() == "" {
		host = net.JoinHostPort(target.Hostname(), "80")
	}
	connection, err := dialer.Dial("tcp", host)
	if err != nil {
		return err
	}
	defer connection.Close()
	given.Connected = time.Since(started).Seconds()
	head := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n", target.RequestURI(), target.Host)
	if token != "" {
		head += "Authorization: " + strings.TrimSpace(token) + "\r\n"
	}
	if _, err := io.WriteString(connection, head+"\r\n"); err != nil {
		return err
	}
	reader := bufio.NewReader(impatient{connection, asked.patience})
	if _, err := reader.Peek(1); err != nil {
		return err
	}
	given.FirstByte = time.Since(started).Seconds()
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	given.Status = response.StatusCode
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	// Other servers' bodies are nobody's business.
	var document struct {
		Code, AccessKeyId string
		Expiration        time.Time
	}
	if json.Unmarshal(body, &document) == nil {
		given.Code, given.AccessKeyID = document.Code, document.AccessKeyId
		if document.AccessKeyId != "" && !document.Expiration.After(time.Now()) {
			return errors.New("credentials that expired at " + document.Expiration.String())
		}
	}
	return nil
}

// untilItListens waits without a request: it is the first one that counts.
func untilItListens(where string) {
	if where == "" {
		fail("nothing says where to ask: the pod was not injected")
	}
	target, err := url.Parse(where)
	if err != nil {
		fail(err.Error())
	}
	// Whoever counts the requests of this pod tells these connections by it: DSCP CS1.
	mark := func(_, _ string, socket syscall.RawConn) error {
		var failure error
		if err := socket.Control(func(fd uintptr) {
			failure = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_TOS, 0x20)
		}); err != nil {
			return err
		}
		return failure
	}
	dialer := net.Dialer{Timeout: time.Second, Control: mark}
	for {
		connection, err := dialer.Dial("tcp", net.JoinHostPort(target.Hostname(), "80"))
		if err == nil {
			_ = connection.Close()
			return
		}
		// Many do the same beside it.
		time.Sleep(30 * time.Millisecond)
	}
}

// impatient gives up when a read brings nothing for a while of its own, as an SDK's read timeout does.
type impatient struct {
	net.Conn
	patience time.Duration
}

func (c impatient) Read(buffer []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.patience)); err != nil {
		return 0, err
	}
	return c.Conn.Read(buffer)
}

func loop(asked request) {
	end := ended()
	seen := summary{Keys: map[string]int{}, Failures: []answer{}, Refusals: []answer{}}
	last := time.Now()
	for {
		given := ask(asked)
		seen.Answers++
		if seen.Slowest.Seconds < given.Seconds {
			seen.Slowest = given
		}
		if given.Status == 200 && given.Error == "" && given.AccessKeyID != "" {
			seen.Silence = max(seen.Silence, time.Since(last).Seconds())
			last = time.Now()
			seen.Keys[given.AccessKeyID]++
		} else {
			seen.Failed++
			kept := &seen.Failures
			if given.Error == "" {
				kept = &seen.Refusals
			}
			if len(*kept) < 5 {
				*kept = append(*kept, given)
			}
		}
		select {
		case <-end:
			report(seen)
			untilAlone()
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// forge takes an address beside its own, and tells the network again and again that it lives here.
func forge(address string) {
	link, err := net.InterfaceByName("eth0")
	if err != nil {
		fail(err.Error())
	}
	socket, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_DGRAM, int(bigEndian(syscall.ETH_P_ARP)))
	if err != nil {
		fail("no socket for packets: " + err.Error())
	}
	ip := net.ParseIP(address).To4()
	for _, setting := range []struct {
		request uintptr
		value   []byte
	}{{syscall.SIOCSIFADDR, ip}, {syscall.SIOCSIFNETMASK, []byte{255, 255, 255, 255}}} {
		if err := set(setting.request, link.Name+":0", setting.value); err != nil {
			fail("take the address: " + err.Error())
		}
	}
	packet := []byte{0, 1, 8, 0, 6, 4, 0, 2}
	packet = append(packet, link.HardwareAddr...)
	packet = append(packet, ip...)
	packet = append(packet, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	packet = append(packet, ip...)
	to := &syscall.SockaddrLinklayer{
		Protocol: bigEndian(syscall.ETH_P_ARP), Ifindex: link.Index, Halen: 6,
		Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	}
	end := ended()
	for {
		if err := syscall.Sendto(socket, packet, 0, to); err != nil {
			fail("send: " + err.Error())
		}
		select {
		case <-end:
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// set gives an IPv4 setting to a second name of an interface.
func set(request uintptr, name string, value []byte) error {
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(socket)
	// struct ifreq: the name, then a struct sockaddr_in.
	var asked [40]byte
	copy(asked[:15], name)
	asked[16] = syscall.AF_INET
	copy(asked[20:24], value)
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(socket), request, uintptr(unsafe.Pointer(&asked[0])))
	if errno != 0 {
		return errno
	}
	return nil
}

func bigEndian(number uint16) uint16 {
	return number<<8 | number>>8
}

func ended() <-chan os.Signal {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	return signals
}

// untilAlone waits for what was started beside this process to end, for a second at most: with the first process of a
// container all others are killed, and `kubectl exec … /probe end` would seem to have failed.
func untilAlone() {
	for begun := time.Now(); time.Since(begun) < time.Second; time.Sleep(time.Millisecond) {
		others, err := filepath.Glob("/proc/[0-9]*")
		if err != nil || len(others) < 2 {
			return
		}
	}
}

// report writes to the standard output, and to the container's termination message where this is its first process.
func report(value any) {
	text, err := json.Marshal(value)
	if err != nil {
		fail(err.Error())
	}
	fmt.Println(string(text))
	if os.Getpid() == 1 {
		_ = os.WriteFile("/dev/termination-log", text, 0o600)
	}
}

func fail(message string) {
	fmt.Fprintln(os.Stderr, message)
	os.Exit(1)
}
