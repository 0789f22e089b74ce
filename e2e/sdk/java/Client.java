// An application that uses the AWS SDK for Java v2 with its defaults: see ../../src/sdk.rs for the commands and what is
// printed.

import java.net.URI;
import java.util.Locale;
import software.amazon.awssdk.core.interceptor.Context;
import software.amazon.awssdk.core.interceptor.ExecutionAttributes;
import software.amazon.awssdk.core.interceptor.ExecutionInterceptor;
import software.amazon.awssdk.services.sts.StsClient;

public final class Client {
  private static String signedWith;

  private record Answer(String accessKeyId, String arn, String error, double elapsedSeconds) {
    void print() {
      String outcome =
          error == null
              ? String.format("\"access_key_id\":\"%s\",\"arn\":\"%s\"", accessKeyId, arn)
              : String.format("\"error\":\"%s\"", error.replaceAll("[^ -~]|[\"\\\\]", "'"));
      System.out.println(String.format(Locale.ROOT, "{%s,\"elapsed_seconds\":%.3f}", outcome, elapsedSeconds));
    }
  }

  public static void main(String[] arguments) throws InterruptedException {
    URI endpoint = URI.create(arguments[1]);
    StsClient[] client = new StsClient[1];
    long started = System.nanoTime();
    Answer first = answer(client, endpoint);
    first.print();
    if (!arguments[0].equals("refresh") || first.error() != null) {
      return;
    }
    double seconds = Double.parseDouble(arguments[2]);
    double beyond = 3 < arguments.length ? Double.parseDouble(arguments[3]) : 0;
    while ((System.nanoTime() - started) / 1e9 < seconds) {
      Thread.sleep(100);
      Answer next = answer(client, endpoint);
      boolean enough = beyond <= (System.nanoTime() - started) / 1e9;
      if (next.error() != null || enough && !first.accessKeyId().equals(next.accessKeyId())) {
        next.print();
        return;
      }
    }
  }

  private static Answer answer(StsClient[] client, URI endpoint) {
    long started = System.nanoTime();
    String arn = null;
    String error = null;
    try {
      // Made at the first call, so that what it asks for belongs to what is reported.
      if (client[0] == null) {
        client[0] =
            StsClient.builder()
                .endpointOverride(endpoint)
                .overrideConfiguration(configuration -> configuration.addExecutionInterceptor(new NoteKey()))
                .build();
      }
      arn = client[0].getCallerIdentity().arn();
    } catch (RuntimeException failure) {
      // Whatever an application would see is what the test is about.
      error = failure.toString();
    }
    return new Answer(signedWith, arn, error, (System.nanoTime() - started) / 1e9);
  }

  private static final class NoteKey implements ExecutionInterceptor {
    @Override
    public void beforeTransmission(Context.BeforeTransmission context, ExecutionAttributes attributes) {
      String header = context.httpRequest().firstMatchingHeader("Authorization").orElse("");
      signedWith = header.replaceFirst(".*Credential=", "").replaceFirst("/.*", "");
    }
  }
}
