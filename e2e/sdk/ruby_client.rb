# An application that uses the AWS SDK for Ruby v3 with its defaults: see ../src/sdk.rs for the commands and what is
# printed.

require 'aws-sdk-core'
require 'json'

# A client that is made at the first call and notes which key its last request was signed with.
class Caller
  def initialize(endpoint)
    @endpoint = endpoint
  end

  def call
    @client ||= Aws::STS::Client.new(endpoint: @endpoint)
    response = @client.get_caller_identity
    header = response.context.http_request.headers['authorization']
    { arn: response.arn, access_key_id: header[%r{Credential=([^/]+)}, 1] }
  end
end

def answer_to(caller)
  started = Process.clock_gettime(Process::CLOCK_MONOTONIC)
  begin
    answer = caller.call
  rescue StandardError => e
    # Whatever an application would see is what the test is about.
    answer = { error: "#{e.class}: #{e.message}" }
  end
  answer.merge(elapsed_seconds: Process.clock_gettime(Process::CLOCK_MONOTONIC) - started)
end

command, endpoint, seconds, beyond = ARGV
$stdout.sync = true
caller = Caller.new(endpoint)
started = Process.clock_gettime(Process::CLOCK_MONOTONIC)
first = answer_to(caller)
puts JSON.generate(first)
exit if command != 'refresh' || first[:error]

deadline = started + seconds.to_f
while Process.clock_gettime(Process::CLOCK_MONOTONIC) < deadline
  sleep 0.1
  answer = answer_to(caller)
  enough = answer[:error] || started + beyond.to_f <= Process.clock_gettime(Process::CLOCK_MONOTONIC)
  if enough && answer[:access_key_id] != first[:access_key_id]
    puts JSON.generate(answer)
    break
  end
end
