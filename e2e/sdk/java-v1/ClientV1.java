// An application that uses the AWS SDK for Java v1 with its defaults: see ../../src/sdk.rs for the commands and what is
// printed.

import com.amazonaws.Request;
import com.amazonaws.Response;
import com.amazonaws.client.builder.AwsClientBuilder.EndpointConfiguration;
import com.amazonaws.handlers.RequestHandler2;
import com.amazonaws.services.securitytoken.AWSSecurityTokenService;
import com.amazonaws.services.securitytoken.AWSSecurityTokenServiceClientBuilder;
import com.amazonaws.services.securitytoken.model.GetCallerIdentityRequest;
import java.util.Locale;

public final class ClientV1 {
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
    AWSSecurityTokenService[] client = new AWSSecurityTokenService[1];
    long started = System.nanoTime();
    Answer first = answer(client, arguments[1]);
    first.print();
    if (!arguments[0].equals("refresh") || first.error() != null) {
      return;
    }
    double seconds = Double.parseDouble(arguments[2]);
    double beyond = 3 < arguments.length ? Double.parseDouble(arguments[3]) : 0;
    while ((System.nanoTime() - started) / 1e9 < seconds) {
      Thread.sleep(100);
      Answer next = answer(client, arguments[1]);
      boolean enough = beyond <= (System.nanoTime() - started) / 1e9;
      if (next.error() != null || enough && !first.accessKeyId().equals(next.accessKeyId())) {
        next.print();
        return;
      }
    }
  }

  private static Answer answer(AWSSecurityTokenService[] client, String endpoint) {
    long started = System.nanoTime();
    String arn = null;
    String error = null;
    try {
      // Made at the first call, so that what it asks for belongs to what is reported.
      if (client[0] == null) {
        client[0] =
            AWSSecurityTokenServiceClientBuilder.standard()
                .withEndpointConfiguration(new EndpointConfiguration(endpoint, System.getenv("AWS_REGION")))
                .withRequestHandlers(new NoteKey())
                .build();
      }
      arn = client[0].getCallerIdentity(new GetCallerIdentityRequest()).getArn();
    } catch (RuntimeException failure) {
      // Whatever an application would see is what the test is about.
      error = failure.toString();
    }
    return new Answer(signedWith, arn, error, (System.nanoTime() - started) / 1e9);
  }

  private static final class NoteKey extends RequestHandler2 {
    @Override
    public void afterResponse(Request<?> request, Response<?> response) {
      String header = request.getHeaders().getOrDefault("Authorization", "");
      signedWith = header.replaceFirst(".*Credential=", "").replaceFirst("/.*", "");
    }
  }
}
