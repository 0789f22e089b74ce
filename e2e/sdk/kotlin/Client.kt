// An application that uses the AWS SDK for Kotlin with its defaults: see ../../src/sdk.rs for the commands and what is
// printed.

import aws.sdk.kotlin.services.sts.StsClient
import aws.sdk.kotlin.services.sts.model.GetCallerIdentityRequest
import aws.smithy.kotlin.runtime.client.ProtocolRequestInterceptorContext
import aws.smithy.kotlin.runtime.http.interceptors.HttpInterceptor
import aws.smithy.kotlin.runtime.http.request.HttpRequest
import aws.smithy.kotlin.runtime.net.url.Url
import java.util.Locale
import kotlin.system.exitProcess
import kotlinx.coroutines.delay
import kotlinx.coroutines.runBlocking

private data class Answer(val accessKeyId: String?, val arn: String?, val error: String?, val elapsed: Double) {
    fun print() {
        val outcome =
            if (error == null) {
                "\"access_key_id\":\"$accessKeyId\",\"arn\":\"$arn\""
            } else {
                "\"error\":\"${error.replace(Regex("[^ -~]|[\"\\\\]"), "'")}\""
            }
        println(String.format(Locale.ROOT, "{%s,\"elapsed_seconds\":%.3f}", outcome, elapsed))
    }
}

/** Calls with a client that is made at the first call and notes which key its last request was signed with. */
private class Caller(private val endpoint: String) : HttpInterceptor {
    private var client: StsClient? = null
    private var signedWith: String? = null

    suspend fun answer(): Answer {
        val started = System.nanoTime()
        var arn: String? = null
        var error: String? = null
        try {
            val client = client ?: make().also { client = it }
            arn = client.getCallerIdentity(GetCallerIdentityRequest {}).arn
        } catch (failure: Exception) {
            // Whatever an application would see is what the test is about.
            error = generateSequence<Throwable>(failure) { it.cause }.joinToString(": ")
        }
        return Answer(signedWith, arn, error, secondsSince(started))
    }

    private suspend fun make() = StsClient.fromEnvironment {
        endpointUrl = Url.parse(endpoint)
        interceptors += this@Caller
    }

    override fun readBeforeTransmit(context: ProtocolRequestInterceptorContext<Any, HttpRequest>) {
        signedWith = context.protocolRequest.headers["Authorization"]?.substringAfter("Credential=")?.substringBefore("/")
    }
}

private fun secondsSince(started: Long) = (System.nanoTime() - started) / 1e9

fun main(arguments: Array<String>) {
    runBlocking {
        val started = System.nanoTime()
        val caller = Caller(arguments[1])
        val first = caller.answer()
        first.print()
        if (arguments[0] == "refresh" && first.error == null) {
            val seconds = arguments[2].toDouble()
            val beyond = arguments.getOrElse(3) { "0" }.toDouble()
            while (secondsSince(started) < seconds) {
                delay(100)
                val next = caller.answer()
                val enough = beyond <= secondsSince(started)
                if (next.error != null || enough && next.accessKeyId != first.accessKeyId) {
                    next.print()
                    break
                }
            }
        }
    }
    // The threads of its HTTP client would stay for a while.
    exitProcess(0)
}
