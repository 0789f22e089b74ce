<?php

// An application that uses AsyncAws, for PHP, with its defaults: see ../src/sdk.rs for the commands and what is printed.

require_once 'AsyncAws/Core/autoload.php';

use AsyncAws\Core\Sts\StsClient;
use Psr\Log\AbstractLogger;

// Notes which key the last request was signed with: at this level the client logs the headers that it sends.
final class NoteKey extends AbstractLogger
{
    public ?string $signedWith = null;

    public function log($level, $message, array $context = [])
    {
        if (preg_match('/Credential=([^\\\\\/]+)/', $context['headers'] ?? '', $found)) {
            $this->signedWith = $found[1];
        }
    }
}

function answerTo(StsClient $client, NoteKey $note): array
{
    $started = hrtime(true);
    try {
        $arn = $client->getCallerIdentity()->getArn();
        $answer = ['arn' => $arn, 'access_key_id' => $note->signedWith];
    } catch (Throwable $error) {
        // Whatever an application would see is what the test is about.
        $answer = ['error' => get_class($error) . ': ' . $error->getMessage()];
    }

    return $answer + ['elapsed_seconds' => (hrtime(true) - $started) / 1e9];
}

function report(array $answer): void
{
    echo json_encode($answer, JSON_UNESCAPED_SLASHES), "\n";
}

[, $command, $endpoint] = $argv;
$note = new NoteKey();
$started = hrtime(true);
$client = new StsClient(['endpoint' => $endpoint, 'debug' => 'true'], null, null, $note);
$first = answerTo($client, $note);
report($first);
if ($command !== 'refresh' || isset($first['error'])) {
    exit;
}
[, , , $seconds, $beyond] = $argv + [4 => 0];
while ((hrtime(true) - $started) / 1e9 < (float) $seconds) {
    usleep(100000);
    $answer = answerTo($client, $note);
    $enough = isset($answer['error']) || (float) $beyond <= (hrtime(true) - $started) / 1e9;
    if ($enough && ($answer['access_key_id'] ?? null) !== $first['access_key_id']) {
        report($answer);
        break;
    }
}
